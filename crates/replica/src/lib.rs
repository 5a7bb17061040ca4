//! A database's copy on storage: lists it, plans and carries out a restore, follows it, and keeps it small.
//!
//! * [`Replica`]: LTX files by level and TXID, over a [`ReplicaClient`](litestream_storage::ReplicaClient).
//! * [`restore`]: files of a replica → database file, in whole or not at all; follow mode.
//! * [`compaction`]: levels, merges, snapshots, retention, gaps.
//! * [`v3`]: backups of Litestream 0.3.x, read only.
//!
//! No SQLite is linked: the check of a restored database and the locks of follow mode are handed in.
//!
//! ```
//! use litestream_core::ltx::{Encoder, Header, WalPos};
//! use litestream_core::sys::World;
//! use litestream_core::types::{Checksum, Level, PageSize, Pgno, Timestamp, Txid, TxidRange};
//! use litestream_replica::replica::{Stamps, build, once};
//! use litestream_replica::restore::{self, Request};
//! use litestream_storage::settings::{Environment, Surroundings, replica_from_url};
//!
//! # #[tokio::main]
//! # async fn main() -> litestream_core::error::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let url = format!("file://{}/replica", dir.path().display());
//! # let output = dir.path().join("app.db");
//! let (world, env) = (World::system(), Environment::capture());
//! let around = Surroundings { env: &env, fs: world.fs.as_ref() };
//! let replica = build(&replica_from_url(&url, around)?, &world)?;
//!
//! // What a daemon does after the first commit: one LTX file that holds every page.
//! # let mut page = vec![0; 512];
//! # page[..16].copy_from_slice(b"SQLite format 3\0");
//! # page[16..18].copy_from_slice(&512_u16.to_be_bytes());
//! # page[28..32].copy_from_slice(&1_u32.to_be_bytes());
//! let txids = TxidRange::new(Txid::FIRST, Txid::FIRST)?;
//! let stamp = Timestamp::from_millis(1_700_000_000_000);
//! let header = Header {
//!     no_checksum: true,
//!     page_size: PageSize::new(512)?,
//!     commit: 1,
//!     txids,
//!     timestamp: stamp,
//!     pre_apply: Checksum::NONE,
//!     wal: WalPos::default(),
//!     node_id: 0,
//! };
//! let mut encoder = Encoder::new(Vec::new(), header)?;
//! encoder.page(Pgno::FIRST, &page)?;
//! let (file, _) = encoder.finish(Checksum::NONE)?;
//! replica.put(Level::L0, txids, stamp, None, None, once(file)).await?;
//!
//! // What is there, and the database back.
//! assert_eq!(replica.list_all(Stamps::Cheap).await?.len(), 1);
//! let unchecked: restore::Check = std::sync::Arc::new(|_, _| Ok(()));
//! let report = restore::run(&world, &replica, &Request::new(&output), unchecked).await?;
//! assert_eq!(std::fs::read(&output).unwrap(), page);
//! # drop(report);
//! # Ok(())
//! # }
//! ```

#![cfg_attr(not(test), forbid(unsafe_code))]

pub mod compaction;
pub mod replica;
pub mod restore;
pub mod v3;

use litestream_core::{error, ltx, sys, types, wal};
use litestream_storage::settings;
pub use replica::{FileInfo, Layout, Replica, build, find_replicas};
