//! Reading and writing keys.
//! Out of scope: transactions ([`super::txn`]).

use std::num::NonZeroU32;

use super::client::Client;
use super::error::{Error, Malformed};
use super::lease::named;
use super::message::{
    Base64, DeleteRequest, DeleteResponse, HeaderResponse, Int, PutRequest, RangeRequest,
    RangeResponse, Request,
};
use super::types::{EtcdKey, Header, KeyValue, LeaseId, Listing, Revision};
use super::url::Url;

/// The largest list, in bytes of keys and values.
const MAX_LIST: usize = 64 << 20;

impl Client {
    /// The value of a key, as the majority has it; `None` if there is none.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn get(&self, key: impl Into<EtcdKey>) -> Result<(Header, Option<KeyValue>), Error> {
        let key: EtcdKey = key.into();
        let message = RangeRequest {
            key: (&key).into(),
            range_end: None,
            limit: Int(1),
            revision: Int(Revision(0)),
        };
        let answer = self.call::<RangeResponse>(Request::Range, &message).await?;
        let found = answer.message.kvs.into_iter().next();
        Ok((answer.message.header.into(), found.map(KeyValue::from)))
    }

    /// All keys with a prefix at one revision, `at` or the latest that the majority has. They are read in pages of at most `page` keys;
    /// each page has the deadline of a request.
    ///
    /// # Errors
    /// [`Error::Compacted`] also if the store was compacted between two pages; [`Error::TooLarge`] if the list has more than 64 MiB.
    pub async fn range(
        &self,
        prefix: impl Into<EtcdKey>,
        at: Option<Revision>,
        page: NonZeroU32,
    ) -> Result<Listing, Error> {
        let prefix: EtcdKey = prefix.into();
        let end = prefix.prefix_end();
        let mut pages = Pages::default();
        let mut page = page.get();
        let mut from = prefix.prefix_start();
        loop {
            let message = RangeRequest {
                key: (&from).into(),
                range_end: Some((&end).into()),
                limit: Int(page),
                revision: Int(at.or(pages.revision()).unwrap_or_default()),
            };
            let answer = match self.call::<RangeResponse>(Request::Range, &message).await {
                Err(Error::TooLarge { .. }) if page > 1 => {
                    page /= 2;
                    continue;
                }
                answer => answer?,
            };
            let header = Header::from(answer.message.header);
            match pages.add(header, answer.message, &answer.endpoint)? {
                Next::Page(next) => from = next,
                Next::End(first) => {
                    return Ok(Listing {
                        header: first,
                        revision: at.unwrap_or(first.revision),
                        kvs: pages.kvs,
                    });
                }
            }
        }
    }

    /// Writes a key; with a lease, the key ends with it.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] if the answer is lost.
    pub async fn put(
        &self,
        key: impl Into<EtcdKey>,
        value: impl Into<Vec<u8>>,
        lease: Option<LeaseId>,
    ) -> Result<Header, Error> {
        let message = PutRequest {
            key: (&key.into()).into(),
            value: Base64(value.into()),
            lease: lease.map(|lease| Int(lease.0)),
        };
        let answer = self.call::<HeaderResponse>(Request::Put, &message).await;
        let answer = answer.map_err(|error| match lease {
            Some(lease) => named(error, lease),
            None => error,
        })?;
        Ok(answer.message.header.into())
    }

    /// Deletes a key; whether it existed.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] if the answer is lost.
    pub async fn delete(&self, key: impl Into<EtcdKey>) -> Result<(Header, bool), Error> {
        let message = DeleteRequest {
            key: (&key.into()).into(),
        };
        let answer = self
            .call::<DeleteResponse>(Request::Delete, &message)
            .await?;
        Ok((answer.message.header.into(), answer.message.deleted > 0))
    }
}

/// The pages of a list so far.
#[derive(Default)]
struct Pages {
    first: Option<Header>,
    kvs: Vec<KeyValue>,
    bytes: usize,
}

/// What follows a page.
enum Next {
    /// The page that begins with this key.
    Page(EtcdKey),
    /// Nothing; the header of the first page.
    End(Header),
}

impl Pages {
    /// The revision of the first page, which the others must have.
    fn revision(&self) -> Option<Revision> {
        self.first.map(|header| header.revision)
    }

    fn add(&mut self, header: Header, page: RangeResponse, endpoint: &Url) -> Result<Next, Error> {
        let endpoint = || endpoint.clone();
        let first = *self.first.get_or_insert(header);
        if first.cluster_id != header.cluster_id {
            return Err(Error::ClusterChanged {
                endpoint: endpoint(),
                expected: first.cluster_id,
                found: header.cluster_id,
            });
        }
        let is_more = page.more;
        let before = self.kvs.len();
        for kv in page.kvs.into_iter().map(KeyValue::from) {
            // Otherwise a server could answer without end.
            if self.kvs.last().is_some_and(|last| last.key >= kv.key) {
                return Err(malformed(endpoint(), Malformed::Field("order of keys")));
            }
            self.bytes += kv.key.as_bytes().len() + kv.value.len();
            self.kvs.push(kv);
        }
        if self.bytes > MAX_LIST {
            return Err(Error::TooLarge {
                endpoint: endpoint(),
                request: Request::Range,
                limit: MAX_LIST,
            });
        }
        match self.kvs.last() {
            Some(last) if is_more && self.kvs.len() > before => {
                Ok(Next::Page(last.key.successor()))
            }
            _ if is_more => Err(malformed(endpoint(), Malformed::Missing("keys"))),
            _ => Ok(Next::End(first)),
        }
    }
}

fn malformed(endpoint: Url, cause: Malformed) -> Error {
    Error::Malformed {
        endpoint,
        request: Request::Range,
        cause,
    }
}
