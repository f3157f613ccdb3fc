//! MMX, SSE to SSE4.2, AES, PCLMULQDQ, SHA, AVX, AVX2, FMA and F16C: a table.
//!
//! `select_float` marks the instructions that obey MXCSR; the others never look at it.

use crate::decode::op::{Handler, Op};
use crate::exec::vector::{
    select_float, select_gather, select_integer, select_masked, select_masked_bytes, select_move, select_zeroupper,
};
use crate::isa::table;

table! {
    // Moves of whole registers.
    Movaps | Movapd | Movups | Movupd | Movdqa | Movdqu | Lddqu | Movntps | Movntpd | Movntdq | Movntdqa => select_move, Vector;
    Vmovaps | Vmovapd | Vmovups | Vmovupd | Vmovdqa | Vmovdqu | Vlddqu | Vmovntps | Vmovntpd | Vmovntdq => select_move, Vector;
    Vmovntdqa => select_move, Vector;
    Vzeroupper | Vzeroall => select_zeroupper, Vector;

    // Moves of some elements.
    Maskmovq | Maskmovdqu | Vmaskmovdqu => select_masked_bytes;
    Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq => select_masked;
    Vpgatherdd | Vpgatherdq | Vpgatherqd | Vpgatherqq | Vgatherdps | Vgatherdpd | Vgatherqps | Vgatherqpd => select_gather;

    // MMX and SSE without floating-point exceptions.
    Pxor | Por | Pand | Pandn | Paddb | Paddw | Paddd | Paddq | Paddsb | Paddsw | Paddusb | Paddusw | Psubb => select_integer, Vector;
    Psubw | Psubd | Psubq | Psubsb | Psubsw | Psubusb | Psubusw | Pmullw | Pmulhw | Pmulhuw | Pmuludq => select_integer, Vector;
    Pmaddwd | Pavgb | Pavgw | Pmaxsw | Pmaxub | Pminsw | Pminub | Psadbw | Pcmpeqb | Pcmpeqw | Pcmpeqd => select_integer, Vector;
    Pcmpgtb | Pcmpgtw | Pcmpgtd | Psllw | Pslld | Psllq | Pslldq | Psrlw | Psrld | Psrlq | Psrldq | Psraw => select_integer, Vector;
    Psrad | Packsswb | Packssdw | Packuswb | Punpcklbw | Punpcklwd | Punpckldq | Punpcklqdq | Punpckhbw => select_integer, Vector;
    Punpckhwd | Punpckhdq | Punpckhqdq | Pshufw | Pshufd | Pshufhw | Pshuflw | Pextrw | Pinsrw | Pmovmskb => select_integer, Vector;
    Movd | Movq | Movq2dq | Movdq2q | Movntq | Andps | Andpd | Andnps | Andnpd | Orps | Orpd | Xorps => select_integer, Vector;
    Xorpd | Shufps | Shufpd | Unpcklps | Unpcklpd | Unpckhps | Unpckhpd | Movmskps | Movmskpd | Movss => select_integer, Vector;
    Movhps | Movhpd | Movlps | Movlpd | Movhlps | Movlhps | Movshdup | Movsldup | Movddup | Pabsb | Pabsw => select_integer, Vector;
    Pabsd | Palignr | Phaddw | Phaddd | Phaddsw | Phsubw | Phsubd | Phsubsw | Pmaddubsw | Pmulhrsw | Pshufb => select_integer, Vector;
    Psignb | Psignw | Psignd | Blendps | Blendpd | Blendvps | Blendvpd | Pblendvb | Pblendw | Extractps => select_integer, Vector;
    Insertps | Mpsadbw | Packusdw | Pcmpeqq | Pcmpgtq | Pextrb | Pextrd | Pextrq | Pinsrb | Pinsrd | Pinsrq => select_integer, Vector;
    Phminposuw | Pmaxsb | Pmaxsd | Pmaxud | Pmaxuw | Pminsb | Pminsd | Pminud | Pminuw | Pmovsxbw | Pmovsxbd => select_integer, Vector;
    Pmovsxbq | Pmovsxwd | Pmovsxwq | Pmovsxdq | Pmovzxbw | Pmovzxbd | Pmovzxbq | Pmovzxwd | Pmovzxwq => select_integer, Vector;
    Pmovzxdq | Pmuldq | Pmulld | Ptest | Pcmpestri | Pcmpestrm | Pcmpistri | Pcmpistrm | Aesenc | Aesenclast => select_integer, Vector;
    Aesdec | Aesdeclast | Aesimc | Aeskeygenassist | Pclmulqdq | Sha1msg1 | Sha1msg2 | Sha1nexte | Sha1rnds4 => select_integer, Vector;
    Sha256msg1 | Sha256msg2 | Sha256rnds2 | Pcmpestri64 | Pcmpestrm64 | Vpcmpestri64 | Vpcmpestrm64 => select_integer, Vector;

    // SSE floating point.
    Addps | Addpd | Addss | Addsd | Subps | Subpd | Subss | Subsd | Mulps | Mulpd | Mulss | Mulsd | Divps => select_float, Float;
    Divpd | Divss | Divsd | Sqrtps | Sqrtpd | Sqrtss | Sqrtsd | Rcpps | Rcpss | Rsqrtps | Rsqrtss | Maxps => select_float, Float;
    Maxpd | Maxss | Maxsd | Minps | Minpd | Minss | Minsd | Cmpps | Cmppd | Cmpss | Comiss | Comisd | Ucomiss => select_float, Float;
    Ucomisd | Cvtpi2ps | Cvtpi2pd | Cvtps2pi | Cvtpd2pi | Cvttps2pi | Cvttpd2pi | Cvtsi2ss | Cvtsi2sd => select_float, Float;
    Cvtss2si | Cvtsd2si | Cvttss2si | Cvttsd2si | Cvtps2pd | Cvtpd2ps | Cvtss2sd | Cvtsd2ss | Cvtdq2ps => select_float, Float;
    Cvtdq2pd | Cvtps2dq | Cvtpd2dq | Cvttps2dq | Cvttpd2dq | Haddps | Haddpd | Hsubps | Hsubpd | Addsubps => select_float, Float;
    Addsubpd | Dpps | Dppd | Roundps | Roundpd | Roundss | Roundsd => select_float, Float;

    // AVX and AVX2 without floating-point exceptions.
    Vpxor | Vpor | Vpand | Vpandn | Vpaddb | Vpaddw | Vpaddd | Vpaddq | Vpaddsb | Vpaddsw | Vpaddusb => select_integer, Vector;
    Vpaddusw | Vpsubb | Vpsubw | Vpsubd | Vpsubq | Vpsubsb | Vpsubsw | Vpsubusb | Vpsubusw | Vpmullw => select_integer, Vector;
    Vpmulhw | Vpmulhuw | Vpmuludq | Vpmaddwd | Vpavgb | Vpavgw | Vpmaxsw | Vpmaxub | Vpminsw | Vpminub => select_integer, Vector;
    Vpsadbw | Vpcmpeqb | Vpcmpeqw | Vpcmpeqd | Vpcmpgtb | Vpcmpgtw | Vpcmpgtd | Vpsllw | Vpslld | Vpsllq => select_integer, Vector;
    Vpslldq | Vpsrlw | Vpsrld | Vpsrlq | Vpsrldq | Vpsraw | Vpsrad | Vpacksswb | Vpackssdw | Vpackuswb => select_integer, Vector;
    Vpunpcklbw | Vpunpcklwd | Vpunpckldq | Vpunpcklqdq | Vpunpckhbw | Vpunpckhwd | Vpunpckhdq | Vpunpckhqdq => select_integer, Vector;
    Vpshufd | Vpshufhw | Vpshuflw | Vpextrw | Vpinsrw | Vpmovmskb | Vmovd | Vmovq | Vandps | Vandpd | Vandnps => select_integer, Vector;
    Vandnpd | Vorps | Vorpd | Vxorps | Vxorpd | Vshufps | Vshufpd | Vunpcklps | Vunpcklpd | Vunpckhps => select_integer, Vector;
    Vunpckhpd | Vmovmskps | Vmovmskpd | Vmovss | Vmovhps | Vmovhpd | Vmovlps | Vmovlpd | Vmovhlps | Vmovlhps => select_integer, Vector;
    Vmovshdup | Vmovsldup | Vmovddup | Vpabsb | Vpabsw | Vpabsd | Vpalignr | Vphaddw | Vphaddd | Vphaddsw => select_integer, Vector;
    Vphsubw | Vphsubd | Vphsubsw | Vpmaddubsw | Vpmulhrsw | Vpshufb | Vpsignb | Vpsignw | Vpsignd | Vblendps => select_integer, Vector;
    Vblendpd | Vpblendw | Vextractps | Vinsertps | Vmpsadbw | Vpackusdw | Vpcmpeqq | Vpcmpgtq | Vpextrb => select_integer, Vector;
    Vpextrd | Vpextrq | Vpinsrb | Vpinsrd | Vpinsrq | Vphminposuw | Vpmaxsb | Vpmaxsd | Vpmaxud | Vpmaxuw => select_integer, Vector;
    Vpminsb | Vpminsd | Vpminud | Vpminuw | Vpmovsxbw | Vpmovsxbd | Vpmovsxbq | Vpmovsxwd | Vpmovsxwq => select_integer, Vector;
    Vpmovsxdq | Vpmovzxbw | Vpmovzxbd | Vpmovzxbq | Vpmovzxwd | Vpmovzxwq | Vpmovzxdq | Vpmuldq | Vpmulld => select_integer, Vector;
    Vptest | Vpcmpestri | Vpcmpestrm | Vpcmpistri | Vpcmpistrm | Vaesenc | Vaesenclast | Vaesdec | Vaesdeclast => select_integer, Vector;
    Vaesimc | Vaeskeygenassist | Vpclmulqdq | Vmovsd | Vbroadcastss | Vbroadcastsd | Vbroadcastf128 | Vbroadcasti128 => select_integer, Vector;
    Vpbroadcastb | Vpbroadcastw | Vpbroadcastd | Vpbroadcastq | Vextractf128 | Vextracti128 | Vinsertf128 => select_integer, Vector;
    Vinserti128 | Vperm2f128 | Vperm2i128 | Vpermilps | Vpermilpd | Vpermd | Vpermq | Vpermps | Vpermpd => select_integer, Vector;
    Vpblendd | Vpblendvb | Vblendvps | Vblendvpd | Vpsllvd | Vpsllvq | Vpsrlvd | Vpsrlvq | Vpsravd | Vtestps => select_integer, Vector;
    Vtestpd => select_integer, Vector;

    // AVX floating point, FMA and F16C.
    Vaddps | Vaddpd | Vaddss | Vaddsd | Vsubps | Vsubpd | Vsubss | Vsubsd | Vmulps | Vmulpd | Vmulss => select_float, Float;
    Vmulsd | Vdivps | Vdivpd | Vdivss | Vdivsd | Vsqrtps | Vsqrtpd | Vsqrtss | Vsqrtsd | Vrcpps | Vrcpss => select_float, Float;
    Vrsqrtps | Vrsqrtss | Vmaxps | Vmaxpd | Vmaxss | Vmaxsd | Vminps | Vminpd | Vminss | Vminsd | Vcmpps => select_float, Float;
    Vcmppd | Vcmpss | Vcomiss | Vcomisd | Vucomiss | Vucomisd | Vcvtsi2ss | Vcvtsi2sd | Vcvtss2si | Vcvtsd2si => select_float, Float;
    Vcvttss2si | Vcvttsd2si | Vcvtps2pd | Vcvtpd2ps | Vcvtss2sd | Vcvtsd2ss | Vcvtdq2ps | Vcvtdq2pd | Vcvtps2dq => select_float, Float;
    Vcvtpd2dq | Vcvttps2dq | Vcvttpd2dq | Vhaddps | Vhaddpd | Vhsubps | Vhsubpd | Vaddsubps | Vaddsubpd => select_float, Float;
    Vdpps | Vdppd | Vroundps | Vroundpd | Vroundss | Vroundsd | Vcmpsd | Vcvtph2ps | Vcvtps2ph | Vfmadd132ps => select_float, Float;
    Vfmadd132pd | Vfmadd132ss | Vfmadd132sd | Vfmadd213ps | Vfmadd213pd | Vfmadd213ss | Vfmadd213sd | Vfmadd231ps => select_float, Float;
    Vfmadd231pd | Vfmadd231ss | Vfmadd231sd | Vfmsub132ps | Vfmsub132pd | Vfmsub132ss | Vfmsub132sd | Vfmsub213ps => select_float, Float;
    Vfmsub213pd | Vfmsub213ss | Vfmsub213sd | Vfmsub231ps | Vfmsub231pd | Vfmsub231ss | Vfmsub231sd | Vfnmadd132ps => select_float, Float;
    Vfnmadd132pd | Vfnmadd132ss | Vfnmadd132sd | Vfnmadd213ps | Vfnmadd213pd | Vfnmadd213ss | Vfnmadd213sd => select_float, Float;
    Vfnmadd231ps | Vfnmadd231pd | Vfnmadd231ss | Vfnmadd231sd | Vfnmsub132ps | Vfnmsub132pd | Vfnmsub132ss => select_float, Float;
    Vfnmsub132sd | Vfnmsub213ps | Vfnmsub213pd | Vfnmsub213ss | Vfnmsub213sd | Vfnmsub231ps | Vfnmsub231pd => select_float, Float;
    Vfnmsub231ss | Vfnmsub231sd | Vfmaddsub132ps | Vfmaddsub132pd | Vfmaddsub213ps | Vfmaddsub213pd | Vfmaddsub231ps => select_float, Float;
    Vfmaddsub231pd | Vfmsubadd132ps | Vfmsubadd132pd | Vfmsubadd213ps | Vfmsubadd213pd | Vfmsubadd231ps => select_float, Float;
    Vfmsubadd231pd => select_float, Float;
}

/// MOVSD of SSE2.
pub fn select_movsd(instruction: &iced_x86::Instruction, op: &mut Op) -> Option<Handler> {
    select_integer(instruction, op)
}

/// CMPSD of SSE2.
pub fn select_cmpsd(instruction: &iced_x86::Instruction, op: &mut Op) -> Option<Handler> {
    select_float(instruction, op)
}
