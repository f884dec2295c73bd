//! Keys of other products that users paste, and what to use instead.
//! Out of scope: values.

/// Keys of Slicer's `config:` and host groups that have no counterpart.
const SLICER: &[(&str, &str)] = &[
    (
        "github_user",
        "keys are not fetched: list them in ssh_keys:",
    ),
    (
        "ca",
        "put the certificates into image:, or install them in userdata: from secrets:",
    ),
    (
        "api",
        "the API is a setting of the daemon: api: in /etc/slice/sliced.yaml",
    ),
    (
        "ssh",
        "the SSH server is a setting of the daemon: ssh: and ssh_keys: in /etc/slice/sliced.yaml",
    ),
    (
        "storage",
        "remove it: disks are copies of image:, a raw file, and storage_size: is their size",
    ),
    ("kernel_image", OCI_KERNEL),
    ("insecure_registry", OCI),
    ("gpu_count", "PCI devices are not passed to VMs"),
    ("pci", "PCI devices are not passed to VMs"),
    ("share_home", MAC),
    ("rosetta", MAC),
    ("sleep_action", MAC),
];

const OCI: &str = "OCI images are not pulled: use image: with the path of a raw file";
const OCI_KERNEL: &str = "OCI images are not pulled: use kernel_file: with the path of a file";
const MAC: &str = "it is for macOS";

/// Keys of Slicer's `network:` that have no counterpart.
const SLICER_NETWORK: &[(&str, &str)] = &[(
    "parent",
    "mode macvtap does not exist: use mode: bridge with a bridge that has this link as a port",
)];

/// Keys of Kubernetes objects.
pub const KUBERNETES: [&str; 5] = ["metadata", "spec", "data", "status", "items"];

/// What to use instead of a key of Slicer in a group or `config:` (`in_network`: in `network:`).
pub fn instead_of(key: &str, in_network: bool) -> Option<&'static str> {
    let table = match in_network {
        true => SLICER_NETWORK,
        false => SLICER,
    };
    let found = table.iter().find(|(name, _)| *name == key);
    found.map(|(_, instead)| *instead)
}
