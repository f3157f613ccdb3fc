//! The interrupt controllers and the timer of a PC, as `KVM_CREATE_IRQCHIP` and `KVM_CREATE_PIT2` give them.
