//! The address plan of 169.254.0.0/16.
//! Not here: who has which block (the store), what the host uses (an argument).
