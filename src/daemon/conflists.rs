//! Watches the directory of CNI network configurations and enqueues the VMs in cni mode when it changes.
//! Out of scope: reading the configurations (the Net stage reads them each time).

use tracing::warn;

use crate::api::network::NetworkSpec;
use crate::engine::{Engine, Key};
use crate::intake::Watch;

/// Whether libcni reads a file of this name.
fn is_configuration(name: &std::ffi::OsStr) -> bool {
    let suffix = std::path::Path::new(name).extension();
    suffix.is_some_and(|suffix| suffix == "conflist" || suffix == "conf" || suffix == "json")
}

/// Runs while the daemon runs. If the directory cannot be watched, changes are detected at the next resync.
pub async fn run(engine: &Engine) {
    let mut watch = match Watch::of(&engine.cni.conf_dir, is_configuration).await {
        Ok(watch) => watch,
        Err(error) => {
            warn!(%error, "cannot watch the CNI configuration directory; changes are detected at the next resync");
            return;
        }
    };
    loop {
        if let Err(error) = watch.changed().await {
            warn!(%error, "cannot renew the watch of the CNI configuration directory");
        }
        let cni_vms = engine.store.read(|world| {
            let vms = world
                .vms()
                .filter(|vm| matches!(vm.spec.network, NetworkSpec::Cni(_)));
            vms.map(|vm| vm.meta.uid).collect::<Vec<_>>()
        });
        for uid in cni_vms {
            engine.waker.enqueue_fresh(Key::Vm(uid));
        }
    }
}
