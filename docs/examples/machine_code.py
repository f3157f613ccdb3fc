"""Run a few bytes of machine code and see each exit: an OUT of the sum of 2 and 3, then HLT."""

from ostler.engine import IoOut, VirtualMachine

CODE = bytes.fromhex(
    "00d8 0430 bae903 ee f4"
)  # add al,bl; add al,'0'; mov dx,0x3e9; out dx,al; hlt

vm = VirtualMachine()
vm.bus.open_bus = False  # what no device answers becomes an exit
vm.memory.add_slot(0, gpa=0, size=0x10000)
vm.memory.write(0x1000, CODE)
vcpu = vm.create_vcpu(0)
sregs = vcpu.sregs
sregs.cs.base = sregs.cs.selector = 0  # the code segment starts at address 0
vcpu.sregs = sregs
vcpu.set_regs(rip=0x1000, rax=2, rbx=3, rflags=2)
while isinstance(reason := vcpu.run(), IoOut):
    print(reason)
print(reason, vcpu.regs)
