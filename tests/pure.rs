//! What is read from the sources alone, without a kernel and without privileges.
//! Out of scope: behaviour.
//!
//! | file | what it tests |
//! |---|---|
//! | `layers` | imports between modules, places of `unsafe`, length of files |
//! | `texts` | every text that a user may read is in a golden file |
//! | `help` | the help of every verb |
//! | `terms` | retired terms do not come back |

mod pure {
    mod help;
    mod layers;
    mod source;
    mod terms;
    mod texts;
}
