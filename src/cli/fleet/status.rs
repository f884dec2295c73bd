//! `fleet status|accept|subnets`.
//! Out of scope: nodes ([`mod@super::node`]).

use super::super::failure::{self, Failure};
use super::super::paint::one_line;
use super::super::{confirm, print};
use super::args::{AcceptArgs, FleetCommand, StatusArgs};
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
    print::answer(args.output, &list, routes)?;
    let errors: Vec<String> = list.unreadable.iter().map(ToString::to_string).collect();
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Failure::Failed(errors)),
    }
}

/// The commands for another machine.
fn routes(list: &FleetList<FleetSubnet>) -> String {
    if list.items.is_empty() {
        return "# No group of the fleet has subnets (placement.subnets).\n".to_owned();
    }
    let mut text =
        "# On each machine that reaches the VMs, as root, until it reboots:\n".to_owned();
    // Names, subnets and addresses are parsed: nothing else of what nodes report is in a command.
    for FleetSubnet {
        group,
        node,
        subnet,
        via,
    } in &list.items
    {
        let line = match via {
            Some(via) => {
                format!("ip route replace {subnet} via {via}  # hostgroup/{group} on node/{node}\n")
            }
            None => format!(
                "# {subnet} of hostgroup/{group}: the API of node/{node} has no IPv4 address; set api.bind_address or fleet.url there\n"
            ),
        };
        text += &line;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_has_an_address_and_a_node_without_one_is_a_comment() {
        let item = |node: &str, via: Option<[u8; 4]>| FleetSubnet {
            group: "web".parse().unwrap(),
            node: node.parse().unwrap(),
            subnet: "10.64.1.0/24".parse().unwrap(),
            via: via.map(Into::into),
        };
        let text = routes(&FleetList {
            items: vec![item("node-a", Some([10, 0, 0, 7])), item("node-b", None)],
            unreadable: Vec::new(),
        });
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(
            lines[0],
            "ip route replace 10.64.1.0/24 via 10.0.0.7  # hostgroup/web on node/node-a"
        );
        assert!(
            lines[1].starts_with("# 10.64.1.0/24 of hostgroup/web: "),
            "{text}"
        );
    }

    #[test]
    fn a_text_that_is_no_address_is_an_error_and_no_part_of_a_command() {
        for via in ["10.0.0.7; reboot", "10.0.0.7\nreboot", "node-a", "::1", ""] {
            let item = serde_json::json!({"group": "web", "node": "a", "subnet": "10.64.1.0/24", "via": via});
            assert!(
                serde_json::from_value::<FleetSubnet>(item).is_err(),
                "{via}"
            );
        }
    }
}
