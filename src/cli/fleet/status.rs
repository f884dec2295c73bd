//! `fleet status|accept|subnets`.
//! Out of scope: nodes ([`mod@super::node`]).

use super::super::failure::{self, Failure};
use super::super::paint::one_line;
use super::super::{confirm, print};
use super::args::{AcceptArgs, FleetCommand, StatusArgs};
use super::object::unreadable_text;
use crate::api::view::{FleetAccept, FleetList, FleetStatus, FleetSubnet};
use crate::wire::Client;

/// `fleet …`.
pub async fn fleet(client: &Client, command: FleetCommand) -> Result<(), Failure> {
    match command {
        FleetCommand::Status(args) => {
            let status = client.fleet_status().await?;
            print::answer(args.output, &status, text)
        }
        FleetCommand::Accept(args) => accept(client, args).await,
        FleetCommand::Subnets(args) => subnets(client, args).await,
    }
}

fn text(status: &FleetStatus) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: &str| {
        let key = format!("{key}:");
        let value = one_line(value);
        text.push_str(format!("{key:<20} {value}").trim_end());
        text.push('\n');
    };
    line("Node", status.node.as_str());
    line("Endpoints", &status.endpoints.join(", "));
    let contact = &status.contact;
    let word = format!("{:?} ({})", contact.status, contact.reason);
    line("Contact", &word);
    if !contact.message.is_empty() {
        line("Message", &contact.message);
    }
    line("Cluster", status.cluster_id.as_deref().unwrap_or("<none>"));
    if let Some(id) = &status.unaccepted_cluster_id {
        line("Not accepted", id);
    }
    line("Revision", &status.revision.to_string());
    let leader = match (&status.leader, &status.error) {
        (Some(leader), _) => leader,
        (None, None) => "<none>",
        (None, Some(_)) => "<unknown>",
    };
    line("Leader", leader);
    let scheduler = &status.scheduler;
    if scheduler.is_leader {
        line("Scheduler", "this node leads");
    }
    for unchanged in &status.unchanged {
        let text = format!(
            "{} ({}): {}",
            unchanged.uid, unchanged.reason, unchanged.message
        );
        line("Unchanged VM", &text);
    }
    let given = [
        ("Nothing planned", &scheduler.not_planned),
        ("Left out", &scheduler.left_out),
        ("Scheduler error", &scheduler.last_error),
        ("Last error", &status.last_error),
        ("Error", &status.error),
    ];
    for (key, value) in given {
        if let Some(value) = value {
            line(key, value);
        }
    }
    text
}

async fn accept(client: &Client, args: AcceptArgs) -> Result<(), Failure> {
    let status = client.fleet_status().await?;
    let Some(id) = status.unaccepted_cluster_id else {
        let contact = status.contact;
        return Err(Failure::one(format!(
            "there is no cluster to accept: contact is {:?} ({})",
            contact.status, contact.reason
        )));
    };
    failure::note(&status.contact.message);
    if !args.yes {
        if !confirm::can_ask() {
            let usage = "expected --yes: the question cannot be asked without a terminal";
            return Err(Failure::Usage(usage.to_owned()));
        }
        confirm::ask(&format!(
            "Accept cluster {id}? This host then makes its VMs what this etcd specifies."
        ))?;
    }
    let request = FleetAccept {
        cluster_id: Some(id),
    };
    let accepted = client.fleet_accept(&request).await?;
    let id = accepted.cluster_id.unwrap_or_default();
    print::out(&format!("cluster {id} accepted\n"))
}

async fn subnets(client: &Client, args: StatusArgs) -> Result<(), Failure> {
    let list = client.fleet_subnets().await?;
    for value in &list.unreadable {
        failure::warn(&unreadable_text(value));
    }
    print::answer(args.output, &list, routes)
}

/// The commands for another machine.
fn routes(list: &FleetList<FleetSubnet>) -> String {
    if list.items.is_empty() {
        return "# No group of the fleet has subnets (placement.subnets).\n".to_owned();
    }
    let mut text =
        "# On each machine that reaches the VMs, as root, until it reboots:\n".to_owned();
    for item in &list.items {
        let via = match &item.via {
            Some(via) => via.clone(),
            None => format!("ADDRESS-OF-{}", item.node),
        };
        let route = format!("ip route replace {} via {via}", item.subnet);
        let route = one_line(&route);
        text += &format!(
            "{route}  # hostgroup/{} on node/{}\n",
            item.group, item.node
        );
    }
    text
}
