//! Both directions against the real Litestream 0.5.17.

mod ltx;
mod reference;
