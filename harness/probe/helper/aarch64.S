// Takes batches of system calls from the fifo "request" and answers into "answer"; see program.py
// for the layout. Position-independent, no stack, no library.
	.set IN, 0x20000000
	.set OUT, 0x21000000

	.globl _start
_start:
again:					// a branch to a global symbol is left to a linker
	mov x8, #103			// setitimer: an orphan ends by itself
	mov x0, #0
	adr x1, idle
	mov x2, #0
	svc #0
	mov x8, #56			// openat
	mov x0, #-100
	adr x1, request
	mov x2, #0
	svc #0
	tbnz x0, #63, quit
	mov x19, x0
	mov x20, #IN
receive:
	mov x8, #63			// read
	mov x0, x19
	mov x1, x20
	mov x2, #OUT
	sub x2, x2, x20
	svc #0
	cmp x0, #0
	b.le received
	add x20, x20, x0
	b receive
received:
	mov x8, #57			// close
	mov x0, x19
	svc #0
	mov x20, #IN
	ldr x21, [x20], #8		// records left
	mov x22, #OUT
record:
	cbz x21, answered
	ldr x9, [x20, #8]
	add x10, x20, #16
	mov x11, #6
argument:
	tbz x9, #0, ready
	ldr x12, [x10]
	ldr x12, [x12]
	str x12, [x10]
ready:
	lsr x9, x9, #1
	add x10, x10, #8
	subs x11, x11, #1
	b.ne argument
	ldr x8, [x20]
	ldp x0, x1, [x20, #16]
	ldp x2, x3, [x20, #32]
	ldp x4, x5, [x20, #48]
	svc #0
	str x0, [x20, #80]
	str x0, [x22], #8
	tbnz x0, #63, next
	ldr x1, [x20, #64]
	cbz x1, next
	ldr x2, [x20, #72]
	cmp x2, #0
	csel x2, x0, x2, eq
copy:
	cbz x2, next
	ldrb w3, [x1], #1
	strb w3, [x22], #1
	sub x2, x2, #1
	b copy
next:
	add x20, x20, #88
	sub x21, x21, #1
	b record
answered:
	mov x8, #56			// openat
	mov x0, #-100
	adr x1, answer
	mov x2, #1
	svc #0
	tbnz x0, #63, quit
	mov x19, x0
	mov x20, #OUT
send:
	subs x2, x22, x20
	b.eq sent
	mov x8, #64			// write
	mov x0, x19
	mov x1, x20
	svc #0
	tbnz x0, #63, quit
	add x20, x20, x0
	b send
sent:
	mov x8, #57			// close
	mov x0, x19
	svc #0
	b again
quit:
	mov x8, #93			// exit
	mov x0, #0
	svc #0
request:
	.asciz "request"
answer:
	.asciz "answer"
	.balign 8, 0
idle:
	.quad 0, 0, 1800, 0
