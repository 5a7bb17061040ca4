//! Settings for tests: the lines of a configuration file, read the way the program reads them.

use std::path::PathBuf;

use litestream::config::{self, Environment, ReplicaKind, Surroundings};
use litestream::sys::{Clock, SystemClock, World};

/// What `keys`, lines of a replica's configuration, mean in an environment with `vars`.
pub(crate) fn replica(keys: &str, vars: &[(&str, &str)]) -> ReplicaKind {
    let world = World::system();
    let vars = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let env = Environment::new(vars, PathBuf::from("/"));
    let around = Surroundings { env: &env, fs: world.fs.as_ref() };
    let keys: String = keys.lines().map(|line| format!("      {}\n", line.trim_start())).collect();
    let config = config::parse(&format!("dbs:\n  - path: /x.db\n    replica:\n{keys}"), around).unwrap();
    config.dbs[0].build(around).unwrap().replica.kind
}

/// A name nobody used before.
pub(crate) fn unique(name: &str) -> String {
    let now = SystemClock::new().now();
    format!("{name}-{now:?}-{}", std::process::id()).replace(|c: char| !c.is_ascii_alphanumeric(), "-")
}
