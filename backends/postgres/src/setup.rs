//! Making the schema before anybody needs it, and letting a role use it that may do nothing else.

use std::sync::Arc;

use ringfence_core::{BackendUrl, Result};
use tokio::runtime::Handle;

use crate::link::Link;
use crate::options::Options;
use crate::schema::Role;

/// Makes the schema that a URL names, as the role that it names, or brings it to the version of this program; and lets another
/// role use it. What is in order stays as it is. Returns the schema's name.
///
/// Errors with [`Refused`](ringfence_core::ErrorKind::Refused) where the role of the URL may not do it, with
/// [`Unsupported`](ringfence_core::ErrorKind::Unsupported) where a newer program has made the schema, with
/// [`InvalidRequest`](ringfence_core::ErrorKind::InvalidRequest) where there is no such role, and as every connection does.
///
/// # Cancel safety
/// Dropped, the schema is made or not, and the rights are given or not, each as a whole. Calling it again does the rest.
pub async fn setup(url: &BackendUrl, grant_to: Option<&str>) -> Result<String> {
    let options = Arc::new(Options::parse(url)?);
    let letting_in = grant_to.map(Role::new).transpose()?.map(|role| options.schema.letting_in(&role));
    let link = Link::new(Arc::clone(&options), Handle::current(), |_| ());
    link.connect().await?;
    if let Some(letting_in) = letting_in {
        link.script(&letting_in).await?;
    }
    Ok(options.schema.name().to_owned())
}

/// What [`setup`] does where there is no schema yet, as a script for `psql`. Nothing is connected to.
///
/// Errors with [`InvalidUrl`](ringfence_core::ErrorKind::InvalidUrl) and, for what is no role, with
/// [`InvalidRequest`](ringfence_core::ErrorKind::InvalidRequest).
pub fn setup_script(url: &BackendUrl, grant_to: Option<&str>) -> Result<String> {
    let role = grant_to.map(Role::new).transpose()?;
    Ok(Options::parse(url)?.schema.script(role.as_ref()))
}
