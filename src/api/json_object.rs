//! Objects of request bodies, for which a list is no valid value.
//! Out of scope: manifests, of which the parser knows the type of each value.
//!
//! # Why
//! A derived `Deserialize` takes a list for the fields of a struct in their order, so `[null]` would be a valid body.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// A struct that is deserialized from an object only.
pub struct JsonObject<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for JsonObject<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Object(PhantomData)).map(Self)
    }
}

struct Object<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

/// Deserializes a field that is an object.
///
/// # Errors
///
/// The value is not an object, or not one of `T`.
pub fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    JsonObject::deserialize(deserializer).map(|JsonObject(value)| value)
}

/// Deserializes a field that is an object or null.
///
/// # Errors
///
/// As [`object`].
pub fn optional<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let value = Option::<JsonObject<T>>::deserialize(deserializer)?;
    Ok(value.map(|JsonObject(value)| value))
}

/// Deserializes a field that is a list of objects.
///
/// # Errors
///
/// The value is not a list, or an item is not an object of `T`.
pub fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let values = Vec::<JsonObject<T>>::deserialize(deserializer)?;
    Ok(values.into_iter().map(|JsonObject(value)| value).collect())
}
