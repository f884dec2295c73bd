//! The client of `/v1/secrets`.
//! Out of scope: where values come from.

use hyper::Method;

use super::client::{Client, NO_BODY, Result};
use crate::api::secret::{SecretChange, SecretName, SecretRequest, SecretView};

impl Client {
    /// See [`super::Backend::secrets`].
    pub async fn secrets(&self) -> Result<Vec<SecretView>> {
        self.json(Method::GET, "/v1/secrets", NO_BODY).await
    }

    /// See [`super::Backend::create_secret`].
    pub async fn create_secret(
        &self,
        name: &SecretName,
        change: SecretChange,
    ) -> Result<SecretView> {
        let request = SecretRequest::of(Some(name), change);
        self.json(Method::POST, "/v1/secrets", Some(&request)).await
    }

    /// See [`super::Backend::update_secret`].
    pub async fn update_secret(
        &self,
        name: &SecretName,
        change: SecretChange,
    ) -> Result<SecretView> {
        let path = format!("/v1/secrets/{name}");
        let request = SecretRequest::of(None, change);
        self.json(Method::PATCH, &path, Some(&request)).await
    }

    /// See [`super::Backend::delete_secret`].
    pub async fn delete_secret(&self, name: &SecretName) -> Result<()> {
        let path = format!("/v1/secrets/{name}");
        self.request(Method::DELETE, &path, NO_BODY).await.map(drop)
    }
}
