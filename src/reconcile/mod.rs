//! DECIDES: desired, observe, plan, act, until the plan is empty.
//! Not here: waiting, words for people.
