//! The kernel and its ways of dirty tracking.

use super::Fact;
use crate::tracking::probe;

/// Write-protect tracking came with this version.
const TRACKING_SINCE: (u32, u32) = (6, 7);

pub fn version() -> Fact {
    let name = rustix::system::uname();
    Fact::ok("kernel", format!("{} {}", name.sysname().to_string_lossy(), name.release().to_string_lossy()))
}

pub fn dirty_tracking() -> Fact {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    // The soft-dirty probe resets this process's bits: only where it matters.
    let write_protect = probe::write_protect();
    let soft_dirty = if write_protect.is_ok() { None } else { Some(probe::soft_dirty()) };
    tracking_fact(&release, write_protect, soft_dirty)
}

fn tracking_fact(
    release: &str,
    write_protect: Result<(), String>,
    soft_dirty: Option<Result<(), String>>,
) -> Fact {
    const NAME: &str = "dirty_tracking";
    let why = match write_protect {
        Ok(()) => return Fact::ok(NAME, "write protection by userfaultfd and PAGEMAP_SCAN works"),
        Err(why) => why,
    };
    let old = parse_release(release).is_some_and(|version| version < TRACKING_SINCE);
    let remedy = if old {
        format!("use Linux {}.{} or later (this is {release})", TRACKING_SINCE.0, TRACKING_SINCE.1)
    } else {
        "use a kernel with CONFIG_USERFAULTFD and CONFIG_PROC_PAGE_MONITOR, and allow userfaultfd in its \
         security module or container"
            .to_owned()
    };
    match soft_dirty {
        Some(Ok(())) => Fact::warn(
            NAME,
            format!("by soft-dirty bits: slower, and not with swap (write protection: {why})"),
            format!("for the faster way, {remedy}"),
        ),
        soft_dirty => {
            let soft_dirty = soft_dirty.and_then(Result::err).unwrap_or_default();
            Fact::missing(
                NAME,
                format!("write protection: {why}; soft-dirty bits: {soft_dirty}"),
                format!("a primary cannot protect QEMU guests here; {remedy}"),
            )
        }
    }
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-', '+']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(parse_release("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(parse_release("6.7-rc1"), Some((6, 7)));
        assert_eq!(parse_release("linux"), None);
        assert!(parse_release("6.18.1") > Some(TRACKING_SINCE));
    }

    #[test]
    fn the_best_way_decides() {
        let no = || Err::<(), _>("no".to_owned());
        assert_eq!(tracking_fact("6.18.0", Ok(()), None).status, Status::Ok);
        assert_eq!(tracking_fact("6.1.0", no(), Some(Ok(()))).status, Status::Warn);
        let neither = tracking_fact("6.1.0", no(), Some(no()));
        assert_eq!(neither.status, Status::Missing);
        assert!(neither.remedy.unwrap().contains("Linux 6.7 or later"));
    }
}
