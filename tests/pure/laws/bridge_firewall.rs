//! The laws of bridge mode's Firewall stage, and a TAP with a filter made of data.
//! Out of scope: the laws in general; what the filter lets pass.

use proptest::prelude::*;
use slicectl::api::network::Mac;
use slicectl::owner::{Instance, Label};
use slicectl::reconcile::firewall::antispoof::PortIsolation;
use slicectl::reconcile::firewall::bridge::{
    Action, AllowedFrames, BridgeFirewall, Desired, Filter, Observed, TapSeen,
};
use slicectl::reconcile::{Conflict, Reconcile};

use crate::laws::model::{self, Model};

pub struct BridgeFirewallModel;

proptest! {
    #[test]
    fn an_open_forwarding_switch_has_an_empty_plan(pass in pass()) {
        let program = program_of(&pass);
        let desired = expected(Some(pass));
        let tap = Some(TapSeen { alias: Some(label().to_string()), up: true });
        model::rest::<BridgeFirewallModel>(&desired, &Observed { tap, program, foreign_filter: None })?;
    }

    #[test]
    fn any_firewall_converges(pass in pass(), world in ours()) {
        model::convergence::<BridgeFirewallModel>(&expected(Some(pass)), world)?;
    }

    #[test]
    fn a_forwarding_switch_opens_after_a_crash_between_any_two_actions(pass in pass(), world in ours()) {
        model::prefix_safety::<BridgeFirewallModel>(&expected(Some(pass)), world)?;
    }

    #[test]
    fn a_strangers_tap_or_filter_is_never_touched(pass in pass(), world in anyones()) {
        model::modesty::<BridgeFirewallModel>(&expected(Some(pass)), world)?;
    }

    #[test]
    fn deletion_shuts_our_forwarding_switch_and_no_other(world in anyones()) {
        model::deletion::<BridgeFirewallModel>(&expected(None), world)?;
    }

    #[test]
    fn a_forwarding_switch_is_open_only_while_its_filter_exists(filter in filter(), world in anyones()) {
        let desired = expected(Some(AllowedFrames::Only(filter.clone())));
        let mut world = world;
        let ours = world.tap.as_ref().is_some_and(|tap| tap.alias == Some(label().to_string()));
        for _ in 0..4 {
            let Ok(plan) = BridgeFirewallModel::plan(&desired, &world) else { break };
            for action in plan {
                BridgeFirewallModel::apply(&desired, &mut world, &action);
            }
        }
        let open = world.tap.as_ref().is_some_and(|tap| tap.up);
        let exists = world.program == Some(AllowedFrames::Only(filter).digest());
        prop_assert!(!ours || !open || exists, "{world:?}");
    }

    #[test]
    fn the_predicted_state_is_the_one_that_the_steps_lead_to(pass in pass(), world in ours()) {
        let (desired, mut world) = (expected(Some(pass)), world);
        for _ in 0..3 {
            let plan = BridgeFirewall::plan(&desired, &world).unwrap_or_default();
            let predicted = BridgeFirewall::predict(&desired, &world, &plan).unwrap();
            for action in &plan {
                BridgeFirewallModel::apply(&desired, &mut world, action);
            }
            prop_assert_eq!(&predicted, &world);
        }
    }

    #[test]
    fn an_open_forwarding_switch_is_not_shut_when_the_filter_is_given_up(world in ours()) {
        let plan = BridgeFirewallModel::plan(&expected(Some(AllowedFrames::Any)), &world).unwrap();
        prop_assert!(!plan.contains(&Action::DisableForwarding));
    }
}

impl Model for BridgeFirewallModel {
    type Desired = Desired;
    type World = Observed;
    type Action = Action;

    fn plan(desired: &Desired, world: &Observed) -> Result<Vec<Action>, Conflict> {
        BridgeFirewall::plan(desired, world)
    }

    fn apply(desired: &Desired, world: &mut Observed, action: &Action) {
        let tap = world.tap.as_mut().expect("a TAP");
        assert_eq!(tap.alias, Some(label().to_string()), "a stranger's");
        match action {
            Action::DisableForwarding => tap.up = false,
            Action::EnableForwarding => {
                let expected = desired.allowed.as_ref().and_then(program_of);
                assert!(
                    expected.is_none() || world.program == expected,
                    "opened unfiltered"
                );
                tap.up = true;
            }
            Action::SetFilter { digest } => {
                assert!(!tap.up, "a filter is set while frames pass");
                assert_eq!(world.foreign_filter, None, "the kernel refuses");
                world.program = Some(digest.clone());
            }
            Action::RemoveFilter => assert!(world.program.take().is_some()),
        }
    }

    fn foreign(_: &Desired, world: &Observed) -> Vec<String> {
        let mut foreign: Vec<String> = world.foreign_filter.iter().cloned().collect();
        let tap = world.tap.as_ref();
        let strange = tap.filter(|tap| tap.alias != Some(label().to_string()));
        foreign.extend(strange.map(|tap| format!("{tap:?} {:?}", world.program)));
        foreign
    }

    fn ours(_: &Desired, world: &Observed) -> Vec<String> {
        let open = |tap: &&TapSeen| tap.up && tap.alias == Some(label().to_string());
        let tap = world.tap.as_ref().filter(open);
        tap.map(|_| "an open gate".to_owned()).into_iter().collect()
    }

    fn is_as_desired(desired: &Desired, world: &Observed) -> bool {
        let filtered = match &desired.allowed {
            None => return Self::ours(desired, world).is_empty(),
            Some(pass) => world.program == program_of(pass),
        };
        filtered && !Self::ours(desired, world).is_empty()
    }
}

fn label() -> Label {
    let uid = "7b1f6a52-8c1d-4e53-9a3e-0d6b7f1c2a44".parse().unwrap();
    let instance = Instance::of("/state".as_ref());
    instance.vm_label(&"web-1".parse().unwrap(), uid)
}

fn expected(pass: Option<AllowedFrames>) -> Desired {
    Desired {
        label: label(),
        tap: "vmtap0".into(),
        allowed: pass,
        last_verified: None,
    }
}

/// The name of the program that must stand.
fn program_of(pass: &AllowedFrames) -> Option<String> {
    pass.program().map(|_| pass.digest())
}

fn filter() -> impl Strategy<Value = Filter> {
    let filter = |last| Filter {
        mac: Mac([2, 0, 0, 0, 0, last]),
        ip: [192, 168, 137, last].into(),
        isolation: None,
    };
    (2_u8..4).prop_map(filter)
}

fn pass() -> impl Strategy<Value = AllowedFrames> {
    let apart = PortIsolation {
        bridge: Mac([2, 0, 0, 0, 0, 0xbb]),
        port: Mac([0xfe, 0xff, 0, 0, 0, 1]),
        subnet: "192.168.137.0/24".parse().unwrap(),
        gateway: [192, 168, 137, 1].into(),
        host_addresses: [[192, 168, 137, 1].into()].into(),
    };
    let alone = Just(AllowedFrames::Apart(apart.clone()));
    let both = filter().prop_map(move |filter| {
        AllowedFrames::Only(Filter {
            isolation: Some(apart.clone()),
            ..filter
        })
    });
    prop_oneof![1 => Just(AllowedFrames::Any), 2 => filter().prop_map(AllowedFrames::Only), 1 => both, 1 => alone]
}

fn world(alias: impl Strategy<Value = Option<String>>) -> impl Strategy<Value = Observed> {
    let program = prop_oneof![
        Just("0123456789ab".to_owned()),
        filter().prop_map(|filter| AllowedFrames::Only(filter).digest())
    ];
    (alias, any::<bool>(), prop::option::of(program)).prop_map(|(alias, up, program)| Observed {
        tap: Some(TapSeen { alias, up }),
        program,
        foreign_filter: None,
    })
}

fn ours() -> impl Strategy<Value = Observed> {
    world(Just(Some(label().to_string())))
}

fn anyones() -> impl Strategy<Value = Observed> {
    let aliases = vec![Some(label().to_string()), Some("mine".to_owned()), None];
    let world = world(prop::sample::select(aliases));
    (world, prop::bool::weighted(0.3)).prop_map(|(world, taken)| match taken {
        // They cannot stand beside each other.
        true => Observed {
            program: None,
            foreign_filter: Some("a filter of kind u32 at priority 1".into()),
            ..world
        },
        false => world,
    })
}
