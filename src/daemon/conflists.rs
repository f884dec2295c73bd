//! The folder of CNI networks: when it changes, the VMs that use them are observed.
//! Out of scope: reading it (the Net stage does, each time).

use tracing::warn;

use crate::api::network::NetworkSpec;
use crate::intake::Watch;
use crate::reconcile::engine::{Engine, Key};

/// What libcni reads, too.
fn is_configuration(name: &std::ffi::OsStr) -> bool {
    let suffix = std::path::Path::new(name).extension();
    suffix.is_some_and(|suffix| suffix == "conflist" || suffix == "conf" || suffix == "json")
}

/// For as long as the daemon runs. A folder that cannot be watched is looked at with the resync.
pub async fn run(engine: &Engine) {
    let mut watch = match Watch::of(&engine.cni.conf_dir, is_configuration).await {
        Ok(watch) => watch,
        Err(error) => {
            warn!(%error, "changes of CNI networks are seen now and then only");
            return;
        }
    };
    loop {
        if let Err(error) = watch.changed().await {
            warn!(%error, "the folder of CNI networks is watched as it lay before");
        }
        let plugged = engine.store.read(|world| {
            let plugged = world
                .vms()
                .filter(|vm| matches!(vm.spec.network, NetworkSpec::Cni(_)));
            plugged.map(|vm| vm.meta.uid).collect::<Vec<_>>()
        });
        for uid in plugged {
            engine.waker.renew(Key::Vm(uid));
        }
    }
}
