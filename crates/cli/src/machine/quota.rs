//! The CPU quota of control groups: processor time per wall time.

use super::cgroup::{self, Version};
use std::fs;
use std::path::{Path, PathBuf};

/// The least of the groups around this process, in processors; `None` without a limit.
pub(super) fn read(root: &Path) -> Option<f64> {
    cgroup::around(root, "cpu").into_iter().filter_map(of_group).min_by(f64::total_cmp)
}

fn of_group((version, group): (Version, PathBuf)) -> Option<f64> {
    let text = |name: &str| fs::read_to_string(group.join(name)).ok();
    let (quota_us, period_us) = match version {
        Version::V2 => {
            let text = text("cpu.max")?;
            let (quota, period) = text.trim().split_once(' ')?;
            (quota.to_owned(), period.to_owned())
        }
        Version::V1 => (text("cpu.cfs_quota_us")?, text("cpu.cfs_period_us")?),
    };
    // Without a limit the quota is "max" in version 2, which is no number, and -1 in version 1.
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|&number| number > 0.0);
    Some(number(&quota_us)? / number(&period_us)?).filter(|quota| quota.is_finite())
}
