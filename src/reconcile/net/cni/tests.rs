//! The guest's connection out of results.
//! Not here: plans.
