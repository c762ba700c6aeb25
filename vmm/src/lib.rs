//! One virtual machine: KVM, vCPU threads, the I/O event loop and its lifecycle.
