"""What the guest is handed at start: a kernel in memory, its parameters, a CPU state, ACPI tables.

Pure functions from bytes to values. Nothing here touches guest memory or a CPU: `boot.load_kernel`
says what to write where (`plan.BootPlan`) and `acpi.tables.build_tables` gives the tables' bytes;
the machine does the writing.
"""
