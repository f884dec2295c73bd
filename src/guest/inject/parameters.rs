//! The kernel command line, as far as it says what is to be executed and mounted (Documentation/admin-guide/kernel-parameters.txt). Pure.
//! Out of scope: the network, which is configured by the image.

use std::time::Duration;

use super::INIT;

/// What the command line says. As in the kernel, the last value of a parameter takes effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// `rdinit=` of the user: the init of the initrd.
    pub ramdisk_init: Option<String>,
    /// `init=`: the init of the root file system.
    pub init: Option<String>,
    /// `root=`.
    pub root: Option<String>,
    /// `rootfstype=`: file systems, in the order in which they are tried.
    pub file_systems: Vec<String>,
    /// `rootflags=`: options of the mount.
    pub options: String,
    /// `rw`; the default is `ro`.
    pub is_writable: bool,
    /// `rootdelay=`: a pause before the device is looked for.
    pub delay: Duration,
    /// `rootwait`: the device is waited for without end.
    pub waits_for_ever: bool,
}

impl Parameters {
    /// Reads `/proc/cmdline`.
    pub fn parse(line: &str) -> Self {
        let mut found = Self::default();
        for word in line.split_ascii_whitespace() {
            // What follows is for the init.
            if word == "--" {
                break;
            }
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let some = || (!value.is_empty()).then(|| value.to_owned());
            match key {
                "rdinit" if value != INIT => found.ramdisk_init = some(),
                "init" => found.init = some(),
                "root" => found.root = some(),
                "rootfstype" => {
                    let names = value.split(',').filter(|name| !name.is_empty());
                    found.file_systems = names.map(str::to_owned).collect();
                }
                "rootflags" => found.options = value.to_owned(),
                "ro" => found.is_writable = false,
                "rw" => found.is_writable = true,
                "rootdelay" => found.delay = Duration::from_secs(value.parse().unwrap_or(0)),
                "rootwait" => found.waits_for_ever = true,
                _ => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_parameter_takes_effect() {
        let line = "console=ttyS0 root=/dev/vda rw root=UUID=1-2 ro rootfstype=ext4,xfs rootflags=noatime,discard \
                    init=/bin/sh rdinit=/sbin/first rdinit=/.slice/init rootdelay=2 rootwait -- root=/dev/vdz";
        let expected = Parameters {
            ramdisk_init: Some("/sbin/first".to_owned()),
            init: Some("/bin/sh".to_owned()),
            root: Some("UUID=1-2".to_owned()),
            file_systems: vec!["ext4".to_owned(), "xfs".to_owned()],
            options: "noatime,discard".to_owned(),
            is_writable: false,
            delay: Duration::from_secs(2),
            waits_for_ever: true,
        };
        assert_eq!(Parameters::parse(line), expected);
    }

    #[test]
    fn missing_empty_and_malformed_parameters_are_the_defaults() {
        for line in [
            "",
            "root= init= rdinit= rootfstype= rootdelay=soon quiet",
            "rdinit=/.slice/init",
        ] {
            assert_eq!(Parameters::parse(line), Parameters::default(), "{line}");
        }
    }
}
