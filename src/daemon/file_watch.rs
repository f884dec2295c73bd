//! Follows files of servers: their certificates, keys and tokens.
//! Out of scope: reading them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use futures::future::{pending, select_all};
use tokio::sync::{Notify, watch};

use super::settings_file::POLL_INTERVAL;
use crate::intake::Watch;

/// Notifies of every change in the directories of the files. Never returns while the daemon runs.
pub(super) async fn follow<T: Clone>(
    mut configs: watch::Receiver<Option<T>>,
    directories: impl Fn(&T) -> BTreeSet<PathBuf>,
    files: &Notify,
    resync: Duration,
) {
    let any = |_: &OsStr| true;
    loop {
        let config = configs.borrow_and_update().clone();
        let (mut watches, mut interval) = (Vec::new(), resync);
        for dir in config.iter().flat_map(&directories) {
            match Watch::of(&dir, any).await {
                Ok(watch) => watches.push(watch),
                Err(_) => interval = POLL_INTERVAL,
            }
        }
        // After the watches are set up, so that no change is missed.
        files.notify_one();
        loop {
            let changed = async {
                match watches.is_empty() {
                    true => pending().await,
                    false => {
                        let all = watches.iter_mut().map(|watch| Box::pin(watch.changed()));
                        select_all(all).await.0
                    }
                }
            };
            tokio::select! {
                changed = configs.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => pending().await,
                },
                changed = changed => {
                    files.notify_one();
                    if changed.is_err() {
                        break;
                    }
                }
                () = tokio::time::sleep(interval), if config.is_some() => files.notify_one(),
            }
        }
    }
}
