//! What replicas have in common.

/// The store that a replica's location is in: the server with its bucket, or the directory beside the replica.
#[must_use]
pub fn store_of(location: &str) -> String {
    let Some((scheme, rest)) = location.split_once("://").filter(|(scheme, _)| *scheme != "file") else {
        return location.rsplit_once('/').map_or(location, |(above, _)| above).to_owned();
    };
    // Two services may have buckets of one name.
    let (path, service) =
        rest.split_once('?').map_or((rest, String::new()), |(path, query)| (path, format!("?{query}")));
    format!("{scheme}://{}{service}", path.split('/').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_on_one_server_or_below_one_directory_share_a_store() {
        for (location, store) in [
            ("s3://bucket/a/b", "s3://bucket"),
            ("s3://bucket/a?endpoint=http://x:1", "s3://bucket?endpoint=http://x:1"),
            ("sftp://me@host:22/a", "sftp://me@host:22"),
            ("file:///backup/app", "file:///backup"),
            ("/backup/app", "/backup"),
            ("app", "app"),
        ] {
            assert_eq!(store_of(location), store);
        }
    }
}
