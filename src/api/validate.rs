//! What only shows when all groups are looked at together: the same name twice, overlapping ranges.
//! Not here: what one manifest alone shows.
