//! stub
use super::Engine;
use super::climb::Reached;
use super::descend::Stuck;
use crate::api::network::CniSpec;
use crate::api::vm::Vm;
use crate::owner::Label;
use crate::runtime::queue::Outcome;
use crate::store;
impl Engine {
    pub(super) async fn climb_plugged(&self, _: &Vm, _: &CniSpec, _: String) -> Result<Reached, store::Error> { Ok(Err(Outcome::Failed)) }
    pub(super) async fn unplug(&self, _: &Label) -> Result<Vec<String>, Stuck> { Ok(vec![]) }
    pub(super) async fn stop_redirecting(&self, _: &Label) -> Result<Vec<String>, Stuck> { Ok(vec![]) }
}
