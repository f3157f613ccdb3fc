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
    Movaps | Movapd | Movups | Movupd | Movdqa | Movdqu | Lddqu | Movntps | Movntpd | Movntdq | Movntdqa => select_move;
    Vmovaps | Vmovapd | Vmovups | Vmovupd | Vmovdqa | Vmovdqu | Vlddqu | Vmovntps | Vmovntpd | Vmovntdq => select_move;
    Vmovntdqa => select_move;
    Vzeroupper | Vzeroall => select_zeroupper;

    // Moves of some elements.
    Maskmovq | Maskmovdqu | Vmaskmovdqu => select_masked_bytes;
    Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq => select_masked;
    Vpgatherdd | Vpgatherdq | Vpgatherqd | Vpgatherqq | Vgatherdps | Vgatherdpd | Vgatherqps | Vgatherqpd => select_gather;

    // MMX and SSE without floating-point exceptions.
    Pxor | Por | Pand | Pandn | Paddb | Paddw | Paddd | Paddq | Paddsb | Paddsw | Paddusb | Paddusw | Psubb => select_integer;
    Psubw | Psubd | Psubq | Psubsb | Psubsw | Psubusb | Psubusw | Pmullw | Pmulhw | Pmulhuw | Pmuludq => select_integer;
    Pmaddwd | Pavgb | Pavgw | Pmaxsw | Pmaxub | Pminsw | Pminub | Psadbw | Pcmpeqb | Pcmpeqw | Pcmpeqd => select_integer;
    Pcmpgtb | Pcmpgtw | Pcmpgtd | Psllw | Pslld | Psllq | Pslldq | Psrlw | Psrld | Psrlq | Psrldq | Psraw => select_integer;
    Psrad | Packsswb | Packssdw | Packuswb | Punpcklbw | Punpcklwd | Punpckldq | Punpcklqdq | Punpckhbw => select_integer;
    Punpckhwd | Punpckhdq | Punpckhqdq | Pshufw | Pshufd | Pshufhw | Pshuflw | Pextrw | Pinsrw | Pmovmskb => select_integer;
    Movd | Movq | Movq2dq | Movdq2q | Movntq | Andps | Andpd | Andnps | Andnpd | Orps | Orpd | Xorps => select_integer;
    Xorpd | Shufps | Shufpd | Unpcklps | Unpcklpd | Unpckhps | Unpckhpd | Movmskps | Movmskpd | Movss => select_integer;
    Movhps | Movhpd | Movlps | Movlpd | Movhlps | Movlhps | Movshdup | Movsldup | Movddup | Pabsb | Pabsw => select_integer;
    Pabsd | Palignr | Phaddw | Phaddd | Phaddsw | Phsubw | Phsubd | Phsubsw | Pmaddubsw | Pmulhrsw | Pshufb => select_integer;
    Psignb | Psignw | Psignd | Blendps | Blendpd | Blendvps | Blendvpd | Pblendvb | Pblendw | Extractps => select_integer;
    Insertps | Mpsadbw | Packusdw | Pcmpeqq | Pcmpgtq | Pextrb | Pextrd | Pextrq | Pinsrb | Pinsrd | Pinsrq => select_integer;
    Phminposuw | Pmaxsb | Pmaxsd | Pmaxud | Pmaxuw | Pminsb | Pminsd | Pminud | Pminuw | Pmovsxbw | Pmovsxbd => select_integer;
    Pmovsxbq | Pmovsxwd | Pmovsxwq | Pmovsxdq | Pmovzxbw | Pmovzxbd | Pmovzxbq | Pmovzxwd | Pmovzxwq => select_integer;
    Pmovzxdq | Pmuldq | Pmulld | Ptest | Pcmpestri | Pcmpestrm | Pcmpistri | Pcmpistrm | Aesenc | Aesenclast => select_integer;
    Aesdec | Aesdeclast | Aesimc | Aeskeygenassist | Pclmulqdq | Sha1msg1 | Sha1msg2 | Sha1nexte | Sha1rnds4 => select_integer;
    Sha256msg1 | Sha256msg2 | Sha256rnds2 | Pcmpestri64 | Pcmpestrm64 | Vpcmpestri64 | Vpcmpestrm64 => select_integer;

    // SSE floating point.
    Addps | Addpd | Addss | Addsd | Subps | Subpd | Subss | Subsd | Mulps | Mulpd | Mulss | Mulsd | Divps => select_float;
    Divpd | Divss | Divsd | Sqrtps | Sqrtpd | Sqrtss | Sqrtsd | Rcpps | Rcpss | Rsqrtps | Rsqrtss | Maxps => select_float;
    Maxpd | Maxss | Maxsd | Minps | Minpd | Minss | Minsd | Cmpps | Cmppd | Cmpss | Comiss | Comisd | Ucomiss => select_float;
    Ucomisd | Cvtpi2ps | Cvtpi2pd | Cvtps2pi | Cvtpd2pi | Cvttps2pi | Cvttpd2pi | Cvtsi2ss | Cvtsi2sd => select_float;
    Cvtss2si | Cvtsd2si | Cvttss2si | Cvttsd2si | Cvtps2pd | Cvtpd2ps | Cvtss2sd | Cvtsd2ss | Cvtdq2ps => select_float;
    Cvtdq2pd | Cvtps2dq | Cvtpd2dq | Cvttps2dq | Cvttpd2dq | Haddps | Haddpd | Hsubps | Hsubpd | Addsubps => select_float;
    Addsubpd | Dpps | Dppd | Roundps | Roundpd | Roundss | Roundsd => select_float;

    // AVX and AVX2 without floating-point exceptions.
    Vpxor | Vpor | Vpand | Vpandn | Vpaddb | Vpaddw | Vpaddd | Vpaddq | Vpaddsb | Vpaddsw | Vpaddusb => select_integer;
    Vpaddusw | Vpsubb | Vpsubw | Vpsubd | Vpsubq | Vpsubsb | Vpsubsw | Vpsubusb | Vpsubusw | Vpmullw => select_integer;
    Vpmulhw | Vpmulhuw | Vpmuludq | Vpmaddwd | Vpavgb | Vpavgw | Vpmaxsw | Vpmaxub | Vpminsw | Vpminub => select_integer;
    Vpsadbw | Vpcmpeqb | Vpcmpeqw | Vpcmpeqd | Vpcmpgtb | Vpcmpgtw | Vpcmpgtd | Vpsllw | Vpslld | Vpsllq => select_integer;
    Vpslldq | Vpsrlw | Vpsrld | Vpsrlq | Vpsrldq | Vpsraw | Vpsrad | Vpacksswb | Vpackssdw | Vpackuswb => select_integer;
    Vpunpcklbw | Vpunpcklwd | Vpunpckldq | Vpunpcklqdq | Vpunpckhbw | Vpunpckhwd | Vpunpckhdq | Vpunpckhqdq => select_integer;
    Vpshufd | Vpshufhw | Vpshuflw | Vpextrw | Vpinsrw | Vpmovmskb | Vmovd | Vmovq | Vandps | Vandpd | Vandnps => select_integer;
    Vandnpd | Vorps | Vorpd | Vxorps | Vxorpd | Vshufps | Vshufpd | Vunpcklps | Vunpcklpd | Vunpckhps => select_integer;
    Vunpckhpd | Vmovmskps | Vmovmskpd | Vmovss | Vmovhps | Vmovhpd | Vmovlps | Vmovlpd | Vmovhlps | Vmovlhps => select_integer;
    Vmovshdup | Vmovsldup | Vmovddup | Vpabsb | Vpabsw | Vpabsd | Vpalignr | Vphaddw | Vphaddd | Vphaddsw => select_integer;
    Vphsubw | Vphsubd | Vphsubsw | Vpmaddubsw | Vpmulhrsw | Vpshufb | Vpsignb | Vpsignw | Vpsignd | Vblendps => select_integer;
    Vblendpd | Vpblendw | Vextractps | Vinsertps | Vmpsadbw | Vpackusdw | Vpcmpeqq | Vpcmpgtq | Vpextrb => select_integer;
    Vpextrd | Vpextrq | Vpinsrb | Vpinsrd | Vpinsrq | Vphminposuw | Vpmaxsb | Vpmaxsd | Vpmaxud | Vpmaxuw => select_integer;
    Vpminsb | Vpminsd | Vpminud | Vpminuw | Vpmovsxbw | Vpmovsxbd | Vpmovsxbq | Vpmovsxwd | Vpmovsxwq => select_integer;
    Vpmovsxdq | Vpmovzxbw | Vpmovzxbd | Vpmovzxbq | Vpmovzxwd | Vpmovzxwq | Vpmovzxdq | Vpmuldq | Vpmulld => select_integer;
    Vptest | Vpcmpestri | Vpcmpestrm | Vpcmpistri | Vpcmpistrm | Vaesenc | Vaesenclast | Vaesdec | Vaesdeclast => select_integer;
    Vaesimc | Vaeskeygenassist | Vpclmulqdq | Vmovsd | Vbroadcastss | Vbroadcastsd | Vbroadcastf128 | Vbroadcasti128 => select_integer;
    Vpbroadcastb | Vpbroadcastw | Vpbroadcastd | Vpbroadcastq | Vextractf128 | Vextracti128 | Vinsertf128 => select_integer;
    Vinserti128 | Vperm2f128 | Vperm2i128 | Vpermilps | Vpermilpd | Vpermd | Vpermq | Vpermps | Vpermpd => select_integer;
    Vpblendd | Vpblendvb | Vblendvps | Vblendvpd | Vpsllvd | Vpsllvq | Vpsrlvd | Vpsrlvq | Vpsravd | Vtestps => select_integer;
    Vtestpd => select_integer;

    // AVX floating point, FMA and F16C.
    Vaddps | Vaddpd | Vaddss | Vaddsd | Vsubps | Vsubpd | Vsubss | Vsubsd | Vmulps | Vmulpd | Vmulss => select_float;
    Vmulsd | Vdivps | Vdivpd | Vdivss | Vdivsd | Vsqrtps | Vsqrtpd | Vsqrtss | Vsqrtsd | Vrcpps | Vrcpss => select_float;
    Vrsqrtps | Vrsqrtss | Vmaxps | Vmaxpd | Vmaxss | Vmaxsd | Vminps | Vminpd | Vminss | Vminsd | Vcmpps => select_float;
    Vcmppd | Vcmpss | Vcomiss | Vcomisd | Vucomiss | Vucomisd | Vcvtsi2ss | Vcvtsi2sd | Vcvtss2si | Vcvtsd2si => select_float;
    Vcvttss2si | Vcvttsd2si | Vcvtps2pd | Vcvtpd2ps | Vcvtss2sd | Vcvtsd2ss | Vcvtdq2ps | Vcvtdq2pd | Vcvtps2dq => select_float;
    Vcvtpd2dq | Vcvttps2dq | Vcvttpd2dq | Vhaddps | Vhaddpd | Vhsubps | Vhsubpd | Vaddsubps | Vaddsubpd => select_float;
    Vdpps | Vdppd | Vroundps | Vroundpd | Vroundss | Vroundsd | Vcmpsd | Vcvtph2ps | Vcvtps2ph | Vfmadd132ps => select_float;
    Vfmadd132pd | Vfmadd132ss | Vfmadd132sd | Vfmadd213ps | Vfmadd213pd | Vfmadd213ss | Vfmadd213sd | Vfmadd231ps => select_float;
    Vfmadd231pd | Vfmadd231ss | Vfmadd231sd | Vfmsub132ps | Vfmsub132pd | Vfmsub132ss | Vfmsub132sd | Vfmsub213ps => select_float;
    Vfmsub213pd | Vfmsub213ss | Vfmsub213sd | Vfmsub231ps | Vfmsub231pd | Vfmsub231ss | Vfmsub231sd | Vfnmadd132ps => select_float;
    Vfnmadd132pd | Vfnmadd132ss | Vfnmadd132sd | Vfnmadd213ps | Vfnmadd213pd | Vfnmadd213ss | Vfnmadd213sd => select_float;
    Vfnmadd231ps | Vfnmadd231pd | Vfnmadd231ss | Vfnmadd231sd | Vfnmsub132ps | Vfnmsub132pd | Vfnmsub132ss => select_float;
    Vfnmsub132sd | Vfnmsub213ps | Vfnmsub213pd | Vfnmsub213ss | Vfnmsub213sd | Vfnmsub231ps | Vfnmsub231pd => select_float;
    Vfnmsub231ss | Vfnmsub231sd | Vfmaddsub132ps | Vfmaddsub132pd | Vfmaddsub213ps | Vfmaddsub213pd | Vfmaddsub231ps => select_float;
    Vfmaddsub231pd | Vfmsubadd132ps | Vfmsubadd132pd | Vfmsubadd213ps | Vfmsubadd213pd | Vfmsubadd231ps => select_float;
    Vfmsubadd231pd => select_float;
}

/// MOVSD of SSE2.
pub fn select_movsd(instruction: &iced_x86::Instruction, op: &mut Op) -> Option<Handler> {
    select_integer(instruction, op)
}

/// CMPSD of SSE2.
pub fn select_cmpsd(instruction: &iced_x86::Instruction, op: &mut Op) -> Option<Handler> {
    select_float(instruction, op)
}
