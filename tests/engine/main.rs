//! The database engine against real SQLite: whatever the application and foreign checkpointers
//! do, the local L0 files put together are the database, page by page.

mod checkpoint_protocol;
mod random_histories;
mod support;
