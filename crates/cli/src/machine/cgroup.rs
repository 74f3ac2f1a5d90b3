//! The control groups around this process, of both versions.

use std::fs;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// The groups that `controller` may limit this process by, each with all that are above it. A path from outside of a
/// container names groups that are not visible within; the mount's root, which is, then stands for all.
pub(super) fn around(root: &Path, controller: &str) -> Vec<(Version, PathBuf)> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let hierarchies = text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let folders = root.join("sys/fs/cgroup");
        match controllers {
            "" => Some((Version::V2, folders, path)),
            // Controllers that share a hierarchy have a folder of all their names, and usually links of one name each.
            _ if controllers.split(',').any(|name| name == controller) => {
                let one = folders.join(controller);
                let mount = if one.is_dir() { one } else { folders.join(controllers) };
                Some((Version::V1, mount, path))
            }
            _ => None,
        }
    });
    let up_from = |(version, mount, path): (Version, PathBuf, &str)| {
        let group = mount.join(path.trim_start_matches('/'));
        let groups = group.ancestors().take_while(|group| group.starts_with(&mount));
        groups.map(|group| (version, group.to_owned())).collect::<Vec<_>>()
    };
    hierarchies.flat_map(up_from).collect()
}
