//! A VM made on demand beside one that is counted: killed, robbed of the state, at every single action.
//! Out of scope: how an order is given.

use crate::crash::cni::PTP;
use crate::crash::sweep::{
    Scene, failing_building, killed_building, killed_taking_down, robbed_building,
    robbed_taking_down,
};
use test_support::objects::{bridged, spec};

const ISOLATED: Scene = Scene {
    template: || spec(Some("169.254.100.0/22"), "192.168.1.0/24"),
    counted: 1,
    strangers: "true",
    settlers: "true",
    build: 35,
    teardown: 10,
};

const BRIDGED: Scene = Scene {
    template: || bridged("br0", "192.168.137.1/24"),
    counted: 1,
    strangers: "true",
    settlers: "true",
    build: 19,
    teardown: 8,
};

#[test]
fn killed_before_any_action_of_a_build_the_next_life_finishes_it() {
    killed_building(&ISOLATED);
}

#[test]
fn killed_before_any_action_of_a_teardown_the_next_life_finishes_it() {
    killed_taking_down(&ISOLATED);
}

#[test]
fn an_action_of_a_build_that_fails_is_tried_again() {
    failing_building(&ISOLATED);
}

#[test]
fn killed_and_robbed_of_its_state_during_a_build_the_next_life_adopts_it_as_what_it_is() {
    robbed_building(&ISOLATED);
}

#[test]
fn killed_and_robbed_of_its_state_during_a_teardown_nothing_is_left_over_in_the_end() {
    robbed_taking_down(&ISOLATED);
}

#[test]
fn on_a_bridge_too_the_next_life_adopts_it_as_what_it_is() {
    robbed_building(&BRIDGED);
}

#[test]
fn in_a_cni_network_too_the_next_life_adopts_it_as_what_it_is() {
    robbed_building(&Scene { counted: 1, ..PTP });
}
