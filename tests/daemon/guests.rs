//! Real guests under QEMU.
//! Not here: the Vmm rung alone (`tests/vmm`).
