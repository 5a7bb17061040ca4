//! Finding the replicas below a prefix: of a bucket or directory that holds many.

use futures::stream::{self, StreamExt, TryStreamExt};

use super::{Key, ReplicaClient};
use crate::error::{Error, Result};

/// Directories listed at once.
const AT_ONCE: usize = 16;
/// Most directories that are looked at.
const MAX_DIRS: usize = 100_000;
/// How far down replicas are looked for.
const MAX_DEPTH: usize = 16;

/// Where replicas are below the client's root, in order; `None` stands for the root itself. A "directory" is
/// one if it holds levels of LTX files in either layout, or generations of 0.3.x.
///
/// # Errors
/// The store's; `Invalid` for a store that cannot list directories, and for one that is too large to
/// be searched.
pub async fn find_replicas(client: &dyn ReplicaClient) -> Result<Vec<Option<Key>>> {
    let mut found = Vec::new();
    let mut layer: Vec<Option<Key>> = vec![None];
    let mut seen = 0;
    for _ in 0..=MAX_DEPTH {
        let listed: Vec<(Option<Key>, Vec<Key>)> =
            stream::iter(layer).map(|dir| list(client, dir)).buffered(AT_ONCE).try_collect().await?;
        layer = Vec::new();
        for (dir, inside) in listed {
            let (parts, others): (Vec<Key>, Vec<Key>) = inside.into_iter().partition(|dir| is_part(dir.name()));
            if !parts.is_empty() {
                found.push(dir);
            }
            layer.extend(others.into_iter().map(Some));
        }
        seen += layer.len();
        if seen > MAX_DIRS {
            return Err(Error::invalid(format!("more than {MAX_DIRS} directories below {}", client.location()))
                .hint("name a prefix further down"));
        }
        if layer.is_empty() {
            break;
        }
    }
    found.sort_unstable();
    Ok(found)
}

async fn list(client: &dyn ReplicaClient, dir: Option<Key>) -> Result<(Option<Key>, Vec<Key>)> {
    let dirs = match &dir {
        None => client.list_root_dirs(),
        Some(dir) => client.list_dirs(dir),
    };
    let dirs = dirs.ok_or_else(|| {
        Error::invalid(format!("replicas of type {:?} cannot be searched for", client.kind()))
            .hint("restore -all -config FILE restores the databases of a configuration")
    })?;
    let inside = dirs.try_collect().await?;
    Ok((dir, inside))
}

/// What a replica consists of: `ltx`, `0000` to `0009`, `generations`.
fn is_part(name: &str) -> bool {
    let level = |rest: &str| rest.len() == 1 && rest.bytes().all(|byte| byte.is_ascii_digit());
    name == "ltx" || name == "generations" || name.strip_prefix("000").is_some_and(level)
}

#[cfg(test)]
mod tests {
    use super::super::file::FileClient;
    use super::*;
    use crate::sys::World;

    #[tokio::test]
    async fn replicas_are_found_wherever_they_are_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["a.db/ltx/0", "a.db/ltx/9", "x/y/b.db/0000", "x/old/generations/0123456789abcdef", "x/empty/00001"]
        {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        std::os::unix::fs::symlink(dir.path(), dir.path().join("x/loop")).unwrap();
        let found = |root: &str| {
            let client = FileClient::new(World::system(), dir.path().join(root));
            async move {
                let found = find_replicas(&client).await.unwrap();
                found.into_iter().map(|key| key.map_or_else(String::new, |key| key.to_string())).collect::<Vec<_>>()
            }
        };
        assert_eq!(found("").await, ["a.db", "x/old", "x/y/b.db"]);
        assert_eq!(found("x").await, ["old", "y/b.db"]);
        assert_eq!(found("a.db").await, [""]);
        assert_eq!(found("nowhere").await, [""; 0]);
    }
}
