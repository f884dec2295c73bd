//! What a model of the host is, and the laws that every one of them is held to.
//! Out of scope: any one reconciler's things.

use std::fmt::{Debug, Display};

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use slicectl::reconcile::Conflict;

/// As many rounds of looking and acting as the loop allows itself.
const ROUNDS: usize = 3;

/// A reconciler's plan, and a host that carries it out.
pub trait Model {
    type Desired: Clone + Debug;
    type World: Clone + Debug;
    type Action: Debug + Display;

    fn plan(desired: &Self::Desired, world: &Self::World) -> Result<Vec<Self::Action>, Conflict>;

    /// As the kernel would. Panics when an action is impossible where it stands, or names what is not ours.
    fn apply(desired: &Self::Desired, world: &mut Self::World, action: &Self::Action);

    /// What is not ours, in words that change when it does.
    fn foreign(desired: &Self::Desired, world: &Self::World) -> Vec<String>;

    /// What is ours.
    fn ours(desired: &Self::Desired, world: &Self::World) -> Vec<String>;

    /// Everything that is wanted is there, found without asking the plan.
    fn is_as_desired(desired: &Self::Desired, world: &Self::World) -> bool;
}

pub type Law = Result<(), TestCaseError>;

/// A world that is as wanted has an empty plan.
pub fn rest<M: Model>(desired: &M::Desired, world: &M::World) -> Law {
    prop_assert!(
        M::is_as_desired(desired, world),
        "not as desired: {world:#?}"
    );
    let plan = plan::<M>(desired, world)?;
    prop_assert!(plan.is_empty(), "at rest, and still: {plan:?}");
    Ok(())
}

/// Whatever was found, a few rounds make it as wanted, and what is not ours is as it was.
pub fn convergence<M: Model>(desired: &M::Desired, world: M::World) -> Law {
    let before = M::foreign(desired, &world);
    let world = converge::<M>(desired, world)?;
    prop_assert!(
        M::is_as_desired(desired, &world),
        "empty plan, and not as desired: {world:#?}"
    );
    prop_assert_eq!(before, M::foreign(desired, &world));
    Ok(())
}

/// A crash after any number of actions is made good by the next life.
pub fn prefix_safety<M: Model>(desired: &M::Desired, world: M::World) -> Law {
    let plan = plan::<M>(desired, &world)?;
    for done in 0..=plan.len() {
        let mut half = world.clone();
        for action in &plan[..done] {
            M::apply(desired, &mut half, action);
        }
        convergence::<M>(desired, half)?;
    }
    Ok(())
}

/// Foreign things are as they were after every single action; in the way, they are a conflict with a remedy.
pub fn modesty<M: Model>(desired: &M::Desired, mut world: M::World) -> Law {
    let before = M::foreign(desired, &world);
    match M::plan(desired, &world) {
        Err(conflict) => {
            prop_assert!(!before.is_empty(), "a conflict with nothing: {conflict}");
            prop_assert!(!conflict.object.is_empty() && !conflict.remedy.is_empty());
        }
        Ok(plan) => {
            for action in plan {
                M::apply(desired, &mut world, &action);
                prop_assert_eq!(&before, &M::foreign(desired, &world), "{}", action);
            }
        }
    }
    Ok(())
}

/// With nothing desired there is soon nothing of ours, and all else, and no conflict ever.
pub fn deletion<M: Model>(nothing: &M::Desired, world: M::World) -> Law {
    let before = M::foreign(nothing, &world);
    let plan = plan::<M>(nothing, &world)?;
    for done in 0..=plan.len() {
        let mut half = world.clone();
        for action in &plan[..done] {
            M::apply(nothing, &mut half, action);
        }
        let gone = converge::<M>(nothing, half)?;
        prop_assert_eq!(M::ours(nothing, &gone), Vec::<String>::new());
        prop_assert_eq!(&before, &M::foreign(nothing, &gone));
    }
    Ok(())
}

/// Plan and apply until the plan is empty; not within [`ROUNDS`] is a failure.
pub fn converge<M: Model>(
    desired: &M::Desired,
    mut world: M::World,
) -> Result<M::World, TestCaseError> {
    let mut left = Vec::new();
    for _ in 0..=ROUNDS {
        left = plan::<M>(desired, &world)?;
        if left.is_empty() {
            return Ok(world);
        }
        for action in &left {
            M::apply(desired, &mut world, action);
        }
    }
    Err(TestCaseError::fail(format!("not converging: {left:?}")))
}

fn plan<M: Model>(desired: &M::Desired, world: &M::World) -> Result<Vec<M::Action>, TestCaseError> {
    M::plan(desired, world).map_err(|conflict| TestCaseError::fail(conflict.to_string()))
}
