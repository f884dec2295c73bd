# From what a VMM leaves us in to main() in 64-bit mode; the timer's interrupt.
# Out of scope: anything that can be written in C.
#
# Two ways in: PVH (32-bit, no paging, %ebx is the start info; Xen's docs/misc/pvh.pandoc) and Linux's 64-bit boot protocol
# (paging on, %rsi are the boot parameters; Documentation/arch/x86/boot.rst). Both end with the first 4 GiB mapped one to one.

    .section .text.start, "ax"
    .code32
    .globl pvh_start
pvh_start:
    cli
    mov %ebx, %edi
    xor %esi, %esi
    mov %cr4, %eax
    or $0x20, %eax              # PAE
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx       # EFER.LME
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    or $0x80000001, %eax        # PG, PE
    mov %eax, %cr0
    lgdt gdtr
    ljmp $8, $long_mode

    .code64
    .globl linux_start
linux_start:
    cli
    xor %edi, %edi
    mov $pml4, %rax
    mov %rax, %cr3
    mov $stack_top, %rsp
    lgdt gdtr
    push $8
    push $long_mode
    lretq

long_mode:
    mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $stack_top, %rsp
    mov %edi, %edi              # main(start info or 0, boot parameters or 0)
    xor %ebp, %ebp
    call main
1:  hlt
    jmp 1b

# void nap(void): sleeps until the next tick. Interrupts are enabled here and nowhere else, so the handler need not return to
# where it struck: it goes back to nap's caller, and does without `iret`, which KVM's emulator lacks outside real mode.
    .globl nap
nap:
    mov %rsp, napping
    sti
    hlt
    cli
    ret

    .globl tick
tick:
    mov $0xfee000b0, %eax       # end of interrupt, at the local APIC
    movl $0, (%rax)
    mov napping, %rsp
    ret

    .globl fault
fault:
    mov $stack_top, %rsp
    call on_fault
1:  hlt
    jmp 1b

    .section .note.Xen, "a", @note
    .long 4, 4, 18              # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start

    .data
    .align 4096
    .globl pml4, far_pages
pml4:
    .quad low_gigabytes + 3, far_gigabyte + 3
    .fill 510, 8, 0
low_gigabytes:
    .quad pages + 3, pages + 0x1003, pages + 0x2003, pages + 0x3003
    .fill 508, 8, 0
far_gigabyte:
    .quad far_pages + 3
    .fill 511, 8, 0
far_pages:                      # of 2 MiB, for machine.c to fill in
    .fill 512, 8, 0
pages:                          # of 2 MiB, one to one
    .set at, 0
    .rept 2048
    .quad at + 0x83
    .set at, at + 0x200000
    .endr

gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdtr:
    .word . - gdt - 1
    .quad gdt

    .bss
    .align 16
napping:
    .skip 16
    .skip 16384
stack_top:
