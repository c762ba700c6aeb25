//! What a guest CPU finds when it wakes up: memory map, boot protocols, CPUID, MSRs, registers, ACPI and MP tables.
