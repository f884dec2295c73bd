//! The keys of the settings file, `/etc/slice/sliced.yaml`.
//! Out of scope: manifests.

use super::{Change, Default, Format, Key, Mapping, Value};

const SETTINGS: &[Mapping] = &[Mapping::Settings];

/// All of them.
pub const KEYS: &[Key] = &[
    Key {
        name: "programs",
        mappings: SETTINGS,
        value: Value::List(&Value::Text(Format::Directory), None),
        default: Default::Text(
            "`/usr/bin`, `/usr/sbin`, `/bin`, `/sbin`, `/usr/local`, `/usr/lib`, `/usr/libexec`, `/opt`, `/nix/store`, `/run/current-system/sw/bin`",
        ),
        modes: &[],
        change: Change::None,
        property: None,
        about: "Directories from which programs (named in a manifest or found in `PATH`) may be run; must be writable by root only; `--programs` takes precedence",
        example: "[\"/usr/bin\", \"/opt/firecracker\"]",
    },
    Key {
        name: "images",
        mappings: SETTINGS,
        value: Value::List(&Value::Text(Format::Directory), None),
        default: Default::Text("`/var/lib/slice/images`"),
        modes: &[],
        change: Change::None,
        property: None,
        about: "Directories from which kernels, initrds, images and disks may be used; must be writable by root only; a block device by its directory, such as `/dev/vg0`; `--images` takes precedence",
        example: "[\"/var/lib/slice/images\", \"/dev/vg0\"]",
    },
    Key {
        name: "removal_grace",
        mappings: SETTINGS,
        value: Value::Text(Format::RemovalGrace),
        default: Default::Word("2s"),
        modes: &[],
        change: Change::None,
        property: None,
        about: "A group is deleted when its file, or the group in it, has been missing for this time; `--removal-grace` takes precedence",
        example: "\"10s\"",
    },
];
