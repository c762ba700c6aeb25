//! Reads the few text files that init depends on: the kernel command line, the list of consoles, the list of modules.

/// The value of the last `name=value` option on a kernel command line, if there is one with a non-empty value.
///
/// The last one wins, as it does for the kernel's own options. Quotes are not interpreted.
#[must_use]
pub fn option<'a>(cmdline: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    words(cmdline)
        .filter_map(|word| word.strip_prefix(name)?.strip_prefix(b"="))
        .filter(|value| !value.is_empty())
        .last()
}

/// The console that `/dev/console` stands for, by its name under `/dev`.
///
/// `active` is the content of `/sys/class/tty/console/active`, which names that console last
/// (Linux, Documentation/ABI/testing/sysfs-tty).
#[must_use]
pub fn console(active: &[u8]) -> Option<&[u8]> {
    words(active).last()
}

/// The paths in a module list: one a line, in the order in which to load them; `#` starts a comment.
pub fn modules(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&byte| byte == b'\n')
        .map(|line| {
            line.split(|&byte| byte == b'#')
                .next()
                .unwrap_or_default()
                .trim_ascii()
        })
        .filter(|path| !path.is_empty())
}

/// Where file systems of block devices are mounted, of a `/proc/mounts`, the last one first. A space in a path stands there as
/// `\\040` (proc(5)); such a one is left out, and so is a last line that is not whole.
pub fn mounted_disks(mounts: &[u8]) -> impl Iterator<Item = &[u8]> {
    let whole = mounts.iter().rposition(|&byte| byte == b'\n').unwrap_or(0);
    mounts
        .get(..whole)
        .unwrap_or_default()
        .rsplit(|&byte| byte == b'\n')
        .filter(|line| line.starts_with(b"/dev/"))
        .filter_map(|line| words(line).nth(1))
        .filter(|at| !at.contains(&b'\\'))
}

fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_found_by_its_whole_name_and_the_last_one_wins() {
        let line = b"quiet xposada.init=/no posada.init=/a posada.init=/checks posada.initial=/no\n";
        assert_eq!(option(line, b"posada.init"), Some(&b"/checks"[..]));
        assert_eq!(option(line, b"posada"), None);
        assert_eq!(option(b"posada.init= quiet", b"posada.init"), None);
        assert_eq!(option(b"", b"posada.init"), None);
    }

    #[test]
    fn the_last_console_is_the_active_one() {
        assert_eq!(console(b"tty0 ttyS0\n"), Some(&b"ttyS0"[..]));
        assert_eq!(console(b"hvc0\n"), Some(&b"hvc0"[..]));
        assert_eq!(console(b"\n"), None);
    }

    #[test]
    fn a_module_list_keeps_its_order_and_skips_comments_and_blank_lines() {
        let list = b"# transports\n/lib/virtio.ko\n\n  /lib/virtio_mmio.ko # bus\n";
        let paths: Vec<_> = modules(list).collect();
        assert_eq!(paths, [&b"/lib/virtio.ko"[..], b"/lib/virtio_mmio.ko"]);
    }

    #[test]
    fn disks_are_found_among_the_mounts_the_last_one_first() {
        let mounts = b"proc /proc proc rw 0 0\n/dev/vda / ext4 rw 0 0\n/dev/vdb /a\\040b ext4 rw 0 0\n/dev/vdc /srv ext4 ro 0 0\n\
              /dev/vdd /cu";
        let found: Vec<_> = mounted_disks(mounts).collect();
        assert_eq!(found, [&b"/srv"[..], b"/"]);
        assert_eq!(mounted_disks(b"").count(), 0);
    }
}
