// Multiboot entry in 32-bit protected mode, the way to 64-bit mode, and the doors to the C code:
// exception stubs, `try` and the way to ring 3.
//
// Memory as boot leaves it: the first GiB at its own address for ring 0, and again at 1 GiB for
// ring 3; from 2 GiB on 512 pages of 4 KiB that tests map as they like (`test_pages`).

#define MULTIBOOT_MAGIC 0x1badb002
#define PAGE_ALIGNED 1

        .section .multiboot, "a"
        .align 4
        .long MULTIBOOT_MAGIC, PAGE_ALIGNED, -(MULTIBOOT_MAGIC + PAGE_ALIGNED)

        .text
        .code32
        .globl start
start:
        mov $stack_top, %esp
        // PML4[0] -> PDPT; PDPT[0] and [1] -> the first GiB, [2] -> the test pages.
        movl $pdpt + 7, pml4
        movl $kernel_directory + 3, pdpt
        movl $user_directory + 7, pdpt + 8
        movl $test_directory + 7, pdpt + 16
        movl $test_pages + 7, test_directory
        mov $0x83, %eax                 // present, writable, 2 MiB
        xor %ecx, %ecx
1:      mov %eax, kernel_directory(, %ecx, 8)
        mov %eax, user_directory(, %ecx, 8)
        orl $4, user_directory(, %ecx, 8)
        add $0x200000, %eax
        inc %ecx
        cmp $512, %ecx
        jne 1b

        mov $0x20, %eax                 // CR4.PAE
        mov %eax, %cr4
        mov $pml4, %eax
        mov %eax, %cr3
        mov $0xc0000080, %ecx           // EFER: LME, NXE, SCE
        rdmsr
        or $0x901, %eax
        wrmsr
        mov $0x80010033, %eax           // CR0: PG, WP, NE, ET, MP, PE
        mov %eax, %cr0
        lgdt gdt_pointer
        ljmp $0x08, $long_mode

        .code64
long_mode:
        mov $0x10, %eax
        mov %eax, %ds
        mov %eax, %es
        mov %eax, %ss
        lea task_state(%rip), %rax      // the TSS descriptor's base, in its four pieces
        lea gdt(%rip), %rdx
        mov %ax, 0x32(%rdx)
        shr $16, %rax
        mov %al, 0x34(%rdx)
        mov %ah, 0x37(%rdx)
        lea stack_top(%rip), %rsp
        mov $0x30, %eax
        ltr %ax
        call main
        hlt

// int try(void (*body)(void)): run `body`; 1 when it was ended by an exception or interrupt, which
// `trap` then describes, 0 when it returned.
        .globl try
try:
        push %rbx
        push %rbp
        push %r12
        push %r13
        push %r14
        push %r15
        mov %rsp, resume_stack(%rip)
        lea trap_stack_top(%rip), %rax
        mov %rax, task_state + 4(%rip)  // RSP0
        call *%rdi
        xor %eax, %eax
        jmp 2f
1:      mov $1, %eax
2:      pop %r15
        pop %r14
        pop %r13
        pop %r12
        pop %rbp
        pop %rbx
        ret

// void to_user(void (*body)(void)): go to ring 3 at `body`, given by its ring-3 address. It has to
// end with an exception or `int $0x80`.
        .globl to_user
to_user:
        lea user_stack_top(%rip), %rax
        add $0x40000000, %rax
        push $0x23                      // SS
        push %rax
        push $0x002                     // RFLAGS
        push $0x2b                      // CS
        push %rdi
        iretq

// What all stubs come to: vector and error code are on the stack, above what the CPU pushed.
common:
        mov %rax, trap + 48(%rip)
        pop trap(%rip)
        pop trap + 8(%rip)
        pop trap + 16(%rip)             // RIP
        pop trap + 24(%rip)             // CS
        pop trap + 32(%rip)             // RFLAGS
        pop trap + 40(%rip)             // RSP
        mov %rsp, trap + 56(%rip)
        mov %cr2, %rax
        mov %rax, trap + 64(%rip)
        mov %dr6, %rax
        mov %rax, trap + 72(%rip)
        mov $0x10, %eax
        mov %eax, %ss
        mov resume_stack(%rip), %rsp
        jmp 1b

        .align 16
        .globl stubs
stubs:
        .set vector, 0
        .rept 256
        .align 16
        // The exceptions that push an error code themselves: 8, 10-14, 17, 21.
        .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21)
        push $0
        .endif
        push $vector
        jmp common
        .set vector, vector + 1
        .endr

        .data
        .align 16
        .globl gdt
gdt:    .quad 0
        .quad 0x00af9b000000ffff        // 08: ring 0 code, 64 bit
        .quad 0x00cf93000000ffff        // 10: ring 0 data
        .quad 0x00cffb000000ffff        // 18: ring 3 code, 32 bit (SYSRET's base selector)
        .quad 0x00cff3000000ffff        // 20: ring 3 data
        .quad 0x00affb000000ffff        // 28: ring 3 code, 64 bit
        .quad 0x0000890000000067, 0     // 30: TSS
        .quad 0x00cf13000000ffff        // 40: ring 0 data, not present
        .globl gdt_pointer
gdt_pointer:
        .word . - gdt - 1
        .quad gdt

        .bss
        .align 4096
pml4:   .skip 4096
pdpt:   .skip 4096
        .globl kernel_directory, user_directory, test_pages, test_frame
kernel_directory:
        .skip 4096
user_directory:
        .skip 4096
test_directory:
        .skip 4096
test_pages:
        .skip 4096
test_frame:
        .skip 4096
        .skip 16384
        .globl stack_top
stack_top:
        .skip 4096
trap_stack_top:
        .skip 4096
        .globl ist_stack_top
ist_stack_top:
        .skip 4096
user_stack_top:
        .globl task_state, trap
task_state:
        .skip 104
        .align 16
trap:   .skip 80
resume_stack:
        .skip 8
