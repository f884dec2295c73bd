//! One packet filter rule, as iptables writes it and the kernel holds it.
//! Not here: what ought to be.
