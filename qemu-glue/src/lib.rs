//! QEMU/KVM processes as guests and standbys.
