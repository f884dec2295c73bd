//! Schemas of values that are texts in JSON, whatever they consist of here, and of some with several forms.
//! Out of scope: the document that has them; all others, which are derived.

use utoipa::openapi::schema::{ArrayBuilder, Object, ObjectBuilder, OneOfBuilder, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::cni::RequestedIp;
use super::event::ObjectRef;
use super::host_group::Origin;
use super::life::GracePeriod;
use super::meta::{Name, Uid};
use super::network::{Addresses, Block, Mac};
use super::policy::Entry;
use super::provision::{Script, Userdata};
use super::secret::SecretName;
use super::ssh_key::SshKey;
use super::tag::PlainTag;
use super::view::ResourceVersion;

macro_rules! texts {
    ($($type:ty),+ $(,)?) => { $(
        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                String::schema()
            }
        }
        impl ToSchema for $type {}
    )+ };
}

texts![
    Block,
    Entry,
    GracePeriod,
    Mac,
    Name,
    ObjectRef,
    PlainTag,
    RequestedIp,
    ResourceVersion,
    Script,
    SecretName,
    SshKey,
    Uid,
];

fn text() -> Object {
    Object::with_type(Type::String)
}

/// An object with one key.
fn keyed(key: &str, value: impl Into<RefOr<Schema>>) -> ObjectBuilder {
    ObjectBuilder::new().property(key, value).required(key)
}

fn word(word: &str) -> ObjectBuilder {
    let text = ObjectBuilder::new().schema_type(Type::String);
    text.enum_values(Some([word]))
}

fn one_of<const N: usize>(variants: [ObjectBuilder; N]) -> RefOr<Schema> {
    let one = variants
        .into_iter()
        .fold(OneOfBuilder::new(), OneOfBuilder::item);
    RefOr::T(one.into())
}

/// `"any"`, `{"range": [first, last]}` or `{"listed": [address]}`.
impl PartialSchema for Addresses {
    fn schema() -> RefOr<Schema> {
        let list = || ArrayBuilder::new().items(text());
        one_of([word("any"), keyed("range", list()), keyed("listed", list())])
    }
}

impl ToSchema for Addresses {}

/// `{"from": "apply"}` or `{"from": "file", "path": path}`.
impl PartialSchema for Origin {
    fn schema() -> RefOr<Schema> {
        let file = keyed("from", word("file")).property("path", text());
        one_of([keyed("from", word("apply")), file.required("path")])
    }
}

impl ToSchema for Origin {}

/// `{"script": text}` or `{"file": path}`.
impl PartialSchema for Userdata {
    fn schema() -> RefOr<Schema> {
        one_of([keyed("script", text()), keyed("file", text())])
    }
}

impl ToSchema for Userdata {}
