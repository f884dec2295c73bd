//! Checks which kernel back end iptables uses (nf_tables or ip_tables), and whether both contain rules.
//! Out of scope: the effect of the rules on forwarded packets.

use super::{Host, fail, ok, run_program, unseen, warn};
use crate::api::view::Check;
use crate::host::error_chain;
use crate::host::iptables::{Backend, Flavour};
use crate::host::rule::{Policy, Ruleset, TableName};

const BACK_END: &str = "iptables back end";
const MIXING: &str = "rules in one back end";

const TABLES: [TableName; 4] = [
    TableName::Raw,
    TableName::Mangle,
    TableName::Nat,
    TableName::Filter,
];

/// The observation; an `Err` contains the message of the error.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    /// `iptables-restore`, which the daemon uses.
    pub restore: Result<Backend, String>,
    /// `iptables --version`, which other programs use.
    pub tool: Result<String, String>,
    /// The tables that `iptables-nft` keeps in nf_tables.
    pub nft: Result<Ruleset, String>,
    /// The tables that `iptables-legacy` keeps in ip_tables.
    pub legacy: Result<Ruleset, String>,
}

pub(super) async fn observe(cx: &Host) -> Observed {
    let tables = cx.home.run(|| {
        let restore = Backend::detect().map_err(|e| error_chain(&e));
        let [nft, legacy] =
            [Flavour::Nft, Flavour::Legacy].map(|flavour| read(flavour, restore.as_ref().ok()));
        Ok((restore, nft, legacy))
    });
    let version = ["iptables", "--version"];
    let (tables, tool) = tokio::join!(tables, run_program(&version));
    let (restore, nft, legacy) = tables.unwrap_or_else(|error| {
        let why = error_chain(&error);
        (Err(why.clone()), Err(why.clone()), Err(why))
    });
    Observed {
        restore,
        tool: tool
            .map(|output| output.trim().into())
            .map_err(|e| error_chain(&e)),
        nft,
        legacy,
    }
}

/// Reads a back end, whichever of them the daemon uses: nf_tables without a program, ip_tables with the daemon's own or that of
/// `iptables-legacy`.
fn read(flavour: Flavour, restore: Option<&Backend>) -> Result<Ruleset, String> {
    let backend = match (flavour, restore) {
        (Flavour::Legacy, Some(restore)) if restore.kind == Flavour::Legacy => restore.clone(),
        (Flavour::Legacy, _) => Backend::legacy(),
        (Flavour::Nft, _) => Backend {
            kind: Flavour::Nft,
            ..Backend::legacy()
        },
    };
    backend.read(&TABLES).map_err(|e| error_chain(&e))
}

pub(super) fn evaluate(observed: &Observed) -> Vec<Check> {
    vec![evaluate_back_end(observed), evaluate_mixing(observed)]
}

fn evaluate_back_end(observed: &Observed) -> Check {
    let restore = match &observed.restore {
        Ok(restore) => restore,
        Err(error) => {
            let remedy = "Install iptables: `apt-get install iptables`.";
            return fail(
                BACK_END,
                format!("iptables-restore cannot be used: {error}"),
                remedy,
            );
        }
    };
    let found = format!("{} ({})", restore.version, flavour_name(restore.kind));
    match &observed.tool {
        Ok(tool) if flavour_of(tool) != restore.kind => warn(
            BACK_END,
            format!(
                "{}, but {tool}: the two commands write to different back ends",
                restore.version
            ),
            format!(
                "Point both to one: `update-alternatives --set iptables /usr/sbin/iptables-{0}` (its slave is iptables-restore), \
                 then restart sliced.",
                flavour_name(restore.kind)
            ),
        ),
        Ok(_) => ok(BACK_END, found),
        Err(why) => warn(
            BACK_END,
            format!("{found}, but iptables itself cannot be run: {why}"),
            "Install iptables whole: `apt-get install --reinstall iptables`.",
        ),
    }
}

fn evaluate_mixing(observed: &Observed) -> Check {
    let (nft, legacy) = match (&observed.nft, &observed.legacy) {
        (Ok(nft), Ok(legacy)) => (nft, legacy),
        // If one of the back ends is not in the kernel, rules cannot be mixed.
        (Ok(_), Err(_)) => return ok(MIXING, "only nf_tables can be read"),
        (Err(_), Ok(_)) => return ok(MIXING, "only ip_tables can be read"),
        (Err(why), Err(_)) => return unseen(MIXING, why),
    };
    match (tables(nft).as_str(), tables(legacy).as_str()) {
        ("", "") => ok(MIXING, "no rules yet"),
        (nft, "") => ok(MIXING, format!("all rules are in nf_tables: {nft}")),
        ("", legacy) => ok(MIXING, format!("all rules are in ip_tables: {legacy}")),
        (in_nft, in_legacy) => warn(
            MIXING,
            format!(
                "rules in both: nf_tables has {in_nft}, ip_tables has {in_legacy}; a packet must pass both{}",
                closed(observed, nft, legacy)
            ),
            "Find the program that uses the other back end (`iptables-nft-save`, `iptables-legacy-save`), switch it to the same back \
             end, and remove its remaining rules.",
        ),
    }
}

/// A packet that the other back end drops cannot be accepted by our rules.
fn closed(observed: &Observed, nft: &Ruleset, legacy: &Ruleset) -> String {
    let other = match observed.restore.as_ref().map(|restore| restore.kind) {
        Ok(Flavour::Nft) => legacy,
        Ok(Flavour::Legacy) => nft,
        Err(_) => return String::new(),
    };
    match other.policy(TableName::Filter, "FORWARD") {
        Policy::Drop => {
            ", and the one that sliced does not write to has policy DROP in FORWARD: VMs reach nothing"
                .into()
        }
        Policy::Accept => String::new(),
    }
}

fn tables(ruleset: &Ruleset) -> String {
    let names: Vec<_> = ruleset
        .tables()
        .iter()
        .map(|table| table.name.to_string())
        .collect();
    names.join(", ")
}

/// Versions before 1.8 have only the legacy back end and do not name it.
fn flavour_of(version: &str) -> Flavour {
    match version.contains("nf_tables") {
        true => Flavour::Nft,
        false => Flavour::Legacy,
    }
}

fn flavour_name(flavour: Flavour) -> &'static str {
    match flavour {
        Flavour::Nft => "nft",
        Flavour::Legacy => "legacy",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::view::CheckStatus;
    use crate::host::rule::{Chain, Table};

    fn seen(nft: Ruleset, legacy: Ruleset) -> Observed {
        Observed {
            restore: Ok(Backend {
                kind: Flavour::Nft,
                restore_program: "/usr/sbin/iptables-restore".into(),
                version: "iptables-restore v1.8.9 (nf_tables)".into(),
                timeout: crate::host::iptables::DEADLINE,
            }),
            tool: Ok("iptables v1.8.9 (nf_tables)".into()),
            nft: Ok(nft),
            legacy: Ok(legacy),
        }
    }

    fn dropping() -> Ruleset {
        Ruleset::new([Table {
            name: TableName::Filter,
            chains: vec![Chain::builtin("FORWARD", Policy::Drop, Vec::new())],
        }])
    }

    fn verdicts(seen: &Observed) -> Vec<CheckStatus> {
        evaluate(seen).iter().map(|check| check.status).collect()
    }

    #[test]
    fn one_back_end_in_use_is_ok_whichever_it_is() {
        use CheckStatus::Ok;
        for seen in [
            seen(dropping(), Ruleset::default()),
            seen(Ruleset::default(), dropping()),
            seen(Ruleset::default(), Ruleset::default()),
        ] {
            assert_eq!(verdicts(&seen), [Ok, Ok]);
        }
    }

    #[test]
    fn rules_in_both_back_ends_are_a_warning_that_names_the_dropping_policy() {
        let checks = evaluate(&seen(dropping(), dropping()));
        assert_eq!(checks[1].status, CheckStatus::Warn);
        assert!(
            checks[1].found.contains("VMs reach nothing"),
            "{}",
            checks[1].found
        );
        assert!(checks[1].remedy.contains("iptables-legacy-save"));
    }

    #[test]
    fn commands_of_different_back_ends_are_a_warning() {
        let mut seen = seen(Ruleset::default(), Ruleset::default());
        seen.tool = Ok("iptables v1.8.9 (legacy)".into());
        let checks = evaluate(&seen);
        assert_eq!(checks[0].status, CheckStatus::Warn);
        assert!(
            checks[0]
                .remedy
                .contains("--set iptables /usr/sbin/iptables-nft")
        );
    }

    #[test]
    fn no_iptables_restore_is_a_failure() {
        let mut seen = seen(Ruleset::default(), Ruleset::default());
        seen.restore = Err("cannot find iptables-restore: entity not found".into());
        assert_eq!(verdicts(&seen)[0], CheckStatus::Fail);
    }

    #[test]
    fn a_kernel_with_one_back_end_cannot_mix_and_with_none_is_unknown() {
        let mut seen = seen(dropping(), Ruleset::default());
        seen.legacy = Err("no ip_tables".into());
        assert_eq!(verdicts(&seen)[1], CheckStatus::Ok);
        seen.nft = Err("no nf_tables".into());
        assert_eq!(verdicts(&seen)[1], CheckStatus::Warn);
    }
}
