"""Loops and cycles counted from a disassembly written by hand."""

from tools.compile_kernels import sass
from tools.compile_kernels.cycles import Loop, budget

KERNEL = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/               @P0 EXIT ;
.L_x_0:
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
.L_x_1:
        /*0030*/                   WARPGROUP.ARRIVE ;
        /*0040*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, gsb0 ;
        /*0050*/                   HGMMA.64x16x8.F32.TF32 R88, gdesc[UR8], R88, gsb0 ;
        /*0060*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0070*/                   DEPBAR.LE SB0, 0x0 ;
        /*0080*/                   WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
        /*0090*/                   MUFU.EX2 R9, R8 ;
        /*00a0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*00b0*/                   MEMBAR.ALL.CTA ;
        /*00c0*/              @!P5 BRA `(.L_x_1) ;
        /*00d0*/               @P1 BRA `(.L_x_0) ;
.L_x_2:
        /*00e0*/                   HMMA.16816.F32.BF16 R4, R4, R8, RZ ;
        /*00f0*/                   HMMA.1688.F32.TF32 R4, R4, R8, RZ ;
        /*0100*/              @!UP0 UBRA `(.L_x_2) ;
        /*0110*/               @P2 BRA `(.L_x_2) ;
        /*0120*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0130*/                   EXIT ;
.L_x_3:
        /*0140*/                   BRA `(.L_x_3);
        /*0150*/                   NOP;
.L_x_4:
"""


def test_instructions_and_loops() -> None:
    code = sass.parse(KERNEL)
    assert len(code.instructions) == 21, "padding behind the end is no instruction"
    assert code.loops == [(2, 13), (3, 12), (14, 17)], "a jump to itself is no loop; two jumps to one place are one"
    assert list(sass.innermost(code, frozenset({"HGMMA", "HMMA"}))) == [(3, 12), (14, 17)]
    assert list(sass.innermost(code, frozenset({"LDG"}))) == [(2, 13)]
    assert sass.name(code.instructions[1]) == "EXIT" and sass.kind(code.instructions[16]) == "UBRA"


def test_cycles_of_two_groups_of_warps() -> None:
    found = budget(KERNEL, num_warps=8)
    # Both groups: 64 x 128 x 16 products at 2,048 a cycle, and 64 x 16 x 8 at half that rate.
    grouped = Loop(matrix=2 * (64 + 8), issue=20, special=16, drains=1, barriers=1, fences=1)
    single = Loop(matrix=2 * (4 + 4), issue=8, special=0, drains=0, barriers=0, fences=0)
    assert found.loops == [grouped, single]
    assert found.outside == 2 * 7
