//! Whether a file that this process makes serves everybody whom another file serves.
//!
//! SQLite gives `-wal`, `-shm` and `-journal` the mode of the database. Their owner is whoever made them, and their group
//! his, unless the directory hands its own down. So a program of another user can lock the application out of its own
//! database. Pure: facts in, verdict out.

use super::fs::OwnerMode;

const READ_WRITE: u32 = 0o6;
/// Directories with this bit hand their group down.
const SET_GROUP_ID: u32 = 0o2000;
const ROOT: u32 = 0;

/// Whom the operating system takes this process for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Effective user.
    pub user: u32,
    /// Effective group.
    pub group: u32,
    /// The other groups.
    pub groups: Vec<u32>,
}

/// How a file beside another one can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Making {
    /// Whoever creates it by the usual means does right.
    Plain,
    /// It must be given owner or group before anybody sees it.
    Given,
    /// It would have this owner and group, and some who may use the other file may not use it.
    Impossible {
        /// Owner.
        user: u32,
        /// Group.
        group: u32,
    },
}

/// How this process can make a file in `dir` that serves everybody whom `like` serves.
#[must_use]
pub fn making(who: &Identity, like: OwnerMode, dir: OwnerMode) -> Making {
    let Some((like_user, like_group)) = like.owner else { return Making::Plain };
    if who.user == ROOT {
        return if (like_user, like_group) == (ROOT, ROOT) { Making::Plain } else { Making::Given };
    }
    let group = match dir.owner {
        Some((_, group)) if dir.mode & SET_GROUP_ID != 0 => group,
        _ => who.group,
    };
    if serves(OwnerMode { owner: Some((who.user, group)), ..like }, like) {
        return Making::Plain;
    }
    let member = who.group == like_group || who.groups.contains(&like_group);
    if member && serves(OwnerMode { owner: Some((who.user, like_group)), ..like }, like) {
        return Making::Given;
    }
    Making::Impossible { user: who.user, group: if member { like_group } else { group } }
}

/// Whether everybody who may read or write `like` may do so with `made`. That the owner of `like` belongs to its group is
/// taken for granted: only root can give a file to a group that its owner is not in.
#[must_use]
pub fn serves(made: OwnerMode, like: OwnerMode) -> bool {
    let (Some((user, group)), Some((like_user, like_group))) = (made.owner, like.owner) else { return true };
    let owners = |mode: u32| mode >> 6 & READ_WRITE;
    let groups = |mode: u32| mode >> 3 & READ_WRITE;
    let others = |mode: u32| mode & READ_WRITE;
    let covers = |has: u32, needs: u32| needs & !has == 0;
    let for_group = if group == like_group { groups(made.mode) } else { others(made.mode) };
    let for_owner = match user {
        _ if like_user == ROOT => READ_WRITE,
        user if user == like_user => owners(made.mode),
        _ => for_group,
    };
    covers(for_owner, owners(like.mode))
        && covers(for_group, groups(like.mode))
        && covers(others(made.mode), others(like.mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    const APP: u32 = 1000;
    const DAEMON: u32 = 2000;

    fn of(user: u32, group: u32, mode: u32) -> OwnerMode {
        OwnerMode { mode, owner: Some((user, group)) }
    }

    fn daemon(group: u32, groups: &[u32]) -> Identity {
        Identity { user: DAEMON, group, groups: groups.to_vec() }
    }

    #[test]
    fn every_combination_of_user_group_mode_and_directory() {
        let plain_dir = of(APP, APP, 0o770);
        let handing_down = of(APP, APP, 0o2770);
        let impossible = |group| Making::Impossible { user: DAEMON, group };
        let rows = [
            // The application's own user.
            (Identity { user: APP, group: APP, groups: vec![] }, 0o600, plain_dir, Making::Plain),
            (Identity { user: APP, group: DAEMON, groups: vec![APP] }, 0o660, plain_dir, Making::Given),
            (
                Identity { user: APP, group: DAEMON, groups: vec![] },
                0o640,
                plain_dir,
                Making::Impossible { user: APP, group: DAEMON },
            ),
            // With another group, but nobody of the group may use the database anyway.
            (Identity { user: APP, group: DAEMON, groups: vec![] }, 0o600, plain_dir, Making::Plain),
            // Another user of the application's group.
            (daemon(APP, &[]), 0o660, plain_dir, Making::Plain),
            (daemon(APP, &[]), 0o640, plain_dir, impossible(APP)),
            (daemon(APP, &[]), 0o600, plain_dir, impossible(APP)),
            // The group is a supplementary one.
            (daemon(DAEMON, &[APP]), 0o660, plain_dir, Making::Given),
            (daemon(DAEMON, &[APP]), 0o660, handing_down, Making::Plain),
            (daemon(DAEMON, &[APP]), 0o640, handing_down, impossible(APP)),
            // Not in the group, or the directory hands another one down.
            (daemon(DAEMON, &[]), 0o660, plain_dir, impossible(DAEMON)),
            (daemon(DAEMON, &[]), 0o660, handing_down, Making::Plain),
            (daemon(APP, &[]), 0o660, of(APP, 3000, 0o2770), Making::Given),
            (daemon(DAEMON, &[]), 0o660, of(APP, 3000, 0o2770), impossible(3000)),
            // Everybody may.
            (daemon(DAEMON, &[]), 0o666, plain_dir, Making::Plain),
            (daemon(DAEMON, &[]), 0o664, plain_dir, impossible(DAEMON)),
        ];
        for (who, mode, dir, expected) in rows {
            assert_eq!(making(&who, of(APP, APP, mode), dir), expected, "{who:?} {mode:o} {dir:?}");
        }
    }

    #[test]
    fn root_gives_files_away_and_is_never_locked_out() {
        let root = Identity { user: 0, group: 0, groups: vec![] };
        let dir = of(0, 0, 0o755);
        assert_eq!(making(&root, of(APP, APP, 0o600), dir), Making::Given);
        assert_eq!(making(&root, of(0, 0, 0o600), dir), Making::Plain);
        assert_eq!(making(&daemon(APP, &[]), of(0, APP, 0o660), dir), Making::Plain);
        assert_eq!(making(&daemon(APP, &[]), OwnerMode { mode: 0o600, owner: None }, dir), Making::Plain);
        // A root that may not give files away shows afterwards.
        assert!(!serves(of(0, 0, 0o660), of(APP, APP, 0o660)));
        assert!(serves(of(APP, APP, 0o660), of(APP, APP, 0o660)));
        assert!(!serves(of(APP, APP, 0o640), of(APP, APP, 0o660)));
    }
}
