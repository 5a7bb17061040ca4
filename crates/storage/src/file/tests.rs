use std::os::unix::fs::{MetadataExt, PermissionsExt};

use futures::TryStreamExt;

use super::*;
use crate::sys::Modes;
use crate::sys::OwnerMode;
use crate::types::Timestamp;

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn options(millis: i64) -> PutOptions {
    PutOptions { stamp: Timestamp::from_millis(millis), size: None, modes: None, exclusive: false }
}

async fn names(client: &FileClient, prefix: &str) -> Result<Vec<String>> {
    let objects: Vec<ObjectMeta> = client.list(&key(prefix), None, Stamps::Cheap).try_collect().await?;
    Ok(objects.into_iter().map(|o| o.key.name().to_owned()).collect())
}

#[tokio::test]
async fn new_files_and_directories_are_private_unless_told_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let client = FileClient::new(World::system(), dir.path().join("r"));
    client.put(&key("ltx/0/a.ltx"), byte_stream::once("x"), options(5)).await.unwrap();
    let mode = |path: &str| std::fs::metadata(dir.path().join(path)).unwrap().mode() & 0o777;
    assert_eq!((mode("r"), mode("r/ltx/0"), mode("r/ltx/0/a.ltx")), (0o700, 0o700, 0o600));

    let modes = Modes { file: OwnerMode { mode: 0o640, owner: None }, dir: OwnerMode { mode: 0o750, owner: None } };
    let opts = PutOptions { modes: Some(modes), ..options(5) };
    client.put(&key("ltx/1/a.ltx"), byte_stream::once("x"), opts).await.unwrap();
    assert_eq!((mode("r/ltx/1"), mode("r/ltx/1/a.ltx")), (0o750, 0o640));
}

#[tokio::test]
async fn only_objects_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let client = FileClient::new(World::system(), dir.path().to_owned());
    let level = dir.path().join("ltx/0");
    std::fs::create_dir_all(level.join("sub.ltx")).unwrap();
    std::fs::write(level.join("a.ltx.tmp"), "half").unwrap();
    std::fs::write(level.join("new\nline"), "hostile").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", level.join("link.ltx")).unwrap();
    std::fs::write(level.join("b.ltx"), "whole").unwrap();
    assert_eq!(names(&client, "ltx/0").await.unwrap(), ["b.ltx"]);
    assert_eq!(client.get(&key("ltx/0/sub.ltx"), None).await.err().unwrap().kind(), ErrorKind::NotFound);
    assert_eq!(
        client.put(&key("ltx/0/c.tmp"), byte_stream::once("x"), options(1)).await.unwrap_err().kind(),
        ErrorKind::Invalid
    );
}

#[tokio::test]
async fn a_directory_that_cannot_be_read_is_not_empty() {
    let dir = tempfile::tempdir().unwrap();
    let client = FileClient::new(World::system(), dir.path().to_owned());
    assert_eq!(names(&client, "ltx/0").await.unwrap(), Vec::<String>::new());
    std::fs::create_dir(dir.path().join("ltx")).unwrap();
    std::fs::write(dir.path().join("ltx/0"), "a file where a directory should be").unwrap();
    assert!(names(&client, "ltx/0").await.is_err());

    let locked = dir.path().join("ltx/1");
    std::fs::create_dir(&locked).unwrap();
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o000)).unwrap();
    // Root reads everything.
    if std::fs::read_dir(&locked).is_err() {
        assert_eq!(names(&client, "ltx/1").await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    }
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o700)).unwrap();
}

/// Of our own leftovers a mark tells whether their writer lives; of others, age. The modification time
/// tells nothing: a living writer has set it to the object's already.
#[tokio::test]
async fn leftovers_are_swept_once_their_writer_is_gone() {
    for (hours, want) in [(0, &["1.ltx.0000000000000001.tmp", "2.ltx.tmp"][..]), (2, &["1.ltx.0000000000000001.tmp"])] {
        let dir = tempfile::tempdir().unwrap();
        let level = dir.path().join("ltx/0");
        std::fs::create_dir_all(&level).unwrap();
        for name in ["1.ltx.0000000000000001.tmp", "1.ltx.0000000000000002.tmp", "2.ltx.tmp", "notes.tmp"] {
            let file = std::fs::File::create(level.join(name)).unwrap();
            file.set_times(std::fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH)).unwrap();
        }
        let living = World::system().fs.open(&level.join("1.ltx.0000000000000001.tmp"), OpenMode::Read).unwrap();
        assert_eq!(living.claim().unwrap(), Some(true));
        let clock = crate::sys::ManualClock::starting_at(World::system().clock.now());
        clock.advance(Duration::from_secs(hours * 3600));
        let world = World { clock: Arc::new(clock), ..World::system() };
        let client = FileClient::new(world, dir.path().to_owned());
        client.put(&key("ltx/0/3.ltx"), byte_stream::once("x"), options(1)).await.unwrap();
        let mut left: Vec<_> =
            std::fs::read_dir(&level).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, [want, &["3.ltx", "notes.tmp"]].concat());
    }
}

#[tokio::test]
async fn a_put_that_is_dropped_half_way_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let client = Arc::new(FileClient::new(World::system(), dir.path().to_owned()));
    let first = stream::iter([Ok(Bytes::from(vec![1; BATCH])), Ok(Bytes::from(vec![2; BATCH]))]);
    let stuck: ByteStream = first.chain(stream::pending()).boxed();
    let task = tokio::spawn({
        let client = client.clone();
        async move { client.put(&key("ltx/0/a.ltx"), stuck, options(1)).await }
    });
    let entries = || std::fs::read_dir(dir.path().join("ltx/0")).map(Iterator::count).unwrap_or(0);
    while entries() == 0 {
        tokio::task::yield_now().await;
    }
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    while entries() != 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_missing_file_reads_like_the_reference_says_it() {
    let client = FileClient::new(World::system(), PathBuf::from("/nonexistent"));
    let err = client.get(&key("ltx/0/a.ltx"), None).await.err().unwrap();
    assert_eq!(
        err.to_string(),
        "open ltx file /nonexistent/ltx/0/a.ltx: open /nonexistent/ltx/0/a.ltx: no such file or directory"
    );
}
