//! The last error of each part of a connection, for status and for the log.
//! Out of scope: what follows from an error.

use std::mem::{Discriminant, discriminant};

use super::Failure;
use crate::fleet::kv;

/// A part of a connection that works or fails by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Lease,
    Objects,
}

/// The last errors.
#[derive(Debug, Default)]
pub(super) struct Errors {
    lease: Option<Known>,
    objects: Option<Known>,
}

#[derive(Debug)]
struct Known {
    text: String,
    kind: Kind,
}

/// Texts differ in endpoints and times; a change of the kind is what is logged.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Etcd(Discriminant<kv::Error>),
    Store,
    Other(String),
}

impl From<&Failure> for Kind {
    fn from(failure: &Failure) -> Self {
        match failure {
            Failure::Etcd(error) => Self::Etcd(discriminant(error)),
            Failure::Store(_) => Self::Store,
            Failure::Other(text) => Self::Other(text.clone()),
        }
    }
}

impl Errors {
    /// A sentence about the first part that fails.
    pub(super) fn text(&self) -> Option<String> {
        let known = self.lease.as_ref().or(self.objects.as_ref());
        known.map(|known| known.text.clone())
    }

    /// A part has failed. Logs an error of another kind than the last one.
    pub(super) fn failed(&mut self, part: Part, failure: &Failure) {
        let (text, kind) = (failure.to_string(), Kind::from(failure));
        let known = self.part(part);
        if known.as_ref().is_none_or(|known| known.kind != kind) {
            match part {
                Part::Lease => tracing::warn!("cannot renew the lease of this node: {text}"),
                Part::Objects => tracing::warn!("cannot watch the objects of the fleet: {text}"),
            }
        }
        *known = Some(Known { text, kind });
    }

    /// A part works.
    pub(super) fn works(&mut self, part: Part) {
        if self.part(part).take().is_some() {
            match part {
                Part::Lease => tracing::info!("the lease of this node is renewed again"),
                Part::Objects => tracing::info!("the objects of the fleet are watched again"),
            }
        }
    }

    fn part(&mut self, part: Part) -> &mut Option<Known> {
        match part {
            Part::Lease => &mut self.lease,
            Part::Objects => &mut self.objects,
        }
    }
}
