//! What is read from the sources alone, without a kernel and without privileges.
//! Out of scope: behaviour.
//!
//! | file | what it tests |
//! |---|---|
//! | `layers` | imports between modules, places of `unsafe`, length of files |
//! | `texts` | every text that a user may read is in a golden file |
//! | `internals` | the functions that docs/internals.md names exist |
//! | `help` | the help of every verb |
//! | `terms` | retired terms do not come back |

mod pure {
    mod help;
    mod internals;
    mod layers;
    mod source;
    mod terms;
    mod texts;
}
