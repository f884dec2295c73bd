//! Executes one action of a plan.
//! Out of scope: which actions are executed, and when.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::{Action, Desired, Record};
use crate::api::allowed::Purpose;
use crate::host::blocking;
use crate::host::fs::{self, Durability};
use crate::host::image::{self, Copy, Found, How, Progress, Use};
use crate::host::named::Named;
use crate::host::{Error, Kind};
use crate::vmm::FileAccess;

/// Maximum number of concurrent copies: more would not increase the throughput.
static COPIES: Semaphore = Semaphore::const_new(8);

/// A copy fails after this time without progress.
const STALL: Duration = Duration::from_secs(60);

pub(super) async fn act(
    desired: &Desired,
    action: &Action,
    progress: &Arc<Progress>,
    places: &FileAccess,
) -> Result<(), Error> {
    match action {
        Action::RemoveDraft => fs::remove(&desired.draft()),
        Action::RemoveDisk(disk) => {
            // Locked during the removal: a VMM that uses the disk must end first.
            let lock = match image::lock(disk, Use::Write) {
                Err(error) if error.kind == Kind::Denied => {
                    fs::free(disk)?;
                    image::lock(disk, Use::Write)
                }
                locked => locked,
            };
            let _lock = match lock {
                Ok(lock) => lock,
                Err(error) if error.kind == Kind::Absent => return Ok(()),
                Err(error) => return Err(error),
            };
            fs::force_remove(disk)
        }
        Action::Note(record) => note(desired, record),
        Action::Copy {
            image,
            to,
            at_least,
        } => {
            let (image, to, draft) = (image.clone(), to.clone(), desired.draft());
            let places = places.clone();
            copy(places, image, draft, to, *at_least, progress.clone()).await
        }
        Action::Grow { disk, to } => {
            let _lock = image::lock(disk, Use::Write)?;
            image::grow(disk, *to)
        }
        Action::Forget => {
            fs::remove_temp(&desired.record())?;
            fs::force_remove(&desired.record())
        }
    }
}

/// Writes the disk record, and creates the disk directory, which only root can list.
fn note(desired: &Desired, record: &Record) -> Result<(), Error> {
    fs::make_dir(&desired.dir, 0o700)?;
    let path = desired.record();
    let text = serde_json::to_vec(record)
        .map_err(|error| Error::other("write", path.display().to_string(), error))?;
    fs::write(&path, &text, 0o600, Durability::Disk)
}

async fn copy(
    places: FileAccess,
    image: PathBuf,
    draft: PathBuf,
    to: PathBuf,
    at_least: u64,
    progress: Arc<Progress>,
) -> Result<(), Error> {
    let _stop = StopWhenDropped(progress.clone());
    let (watched, shown) = (progress.clone(), image.display().to_string());
    // The permit is released when this future is dropped: a copy that hangs does not block the copies of other VMs.
    let _turn = COPIES.acquire().await;
    let key = format!("copy {} to {}", image.display(), draft.display());
    let copy = move || {
        let named = places
            .open(Purpose::Image, &image)
            .map_err(|why| why.when("copy", &image))?;
        fit(&named, &image)?;
        let what = Copy {
            image: &named,
            display_path: &image,
            temp: &draft,
            target: &to,
            min_size: at_least,
        };
        image::copy(&what, &progress)
    };
    let how = tokio::select! {
        how = blocking::limited(1, key, Duration::MAX, "copy", "an image", copy) => how?,
        () = stalled(&watched) => {
            let stall = humantime::format_duration(STALL);
            let why = format!("no progress for {stall}");
            let why = io::Error::new(io::ErrorKind::TimedOut, why);
            return Err(Error::io("copy", shown, why));
        }
    };
    match how {
        How::Shared => tracing::debug!("created a disk that shares blocks with its image"),
        How::Copied(bytes) => tracing::debug!(bytes, "created a disk by copying its image"),
    }
    Ok(())
}

/// Returns when the copy has made no progress for [`STALL`].
async fn stalled(progress: &Progress) {
    let mut done = None;
    loop {
        let now = Some(progress.done.load(Ordering::Relaxed));
        if now == done {
            return;
        }
        done = now;
        tokio::time::sleep(STALL).await;
    }
}

/// Checks the type and format of the image again: both may have changed since the manifest was applied.
fn fit(named: &Named, path: &std::path::Path) -> Result<(), Error> {
    let shown = || path.display().to_string();
    match image::inspect_file(named, path)? {
        Found::File(_) => {}
        Found::Absent => return Err(Error::other("copy", shown(), "not found")),
        Found::Device => return Err(Error::other("copy", shown(), "it is a block device")),
        Found::Other(what) => return Err(Error::other("copy", shown(), format!("it is {what}"))),
    }
    match image::format(named, path)? {
        None => Ok(()),
        Some(format) => {
            let why = format!("it is {format}, expected a raw image");
            Err(Error::other("copy", shown(), why))
        }
    }
}

/// Stops the copying thread when the future is dropped.
struct StopWhenDropped(Arc<Progress>);

impl Drop for StopWhenDropped {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}
