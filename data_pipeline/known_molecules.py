"""Real molecules with their common names, typed in by class; the embedded corpus starts from them.

Stereochemistry is given where it is part of the name's usual meaning. The text is `name<spaces>SMILES`, one a line.
"""

_TABLE = """
# solvents and small building blocks
water                        O
methanol                     CO
ethanol                      CCO
isopropanol                  CC(C)O
1-butanol                    CCCCO
tert-butanol                 CC(C)(C)O
ethylene glycol              OCCO
propylene glycol             CC(O)CO
glycerol                     OCC(O)CO
acetone                      CC(C)=O
2-butanone                   CCC(C)=O
cyclohexanone                O=C1CCCCC1
diethyl ether                CCOCC
tetrahydrofuran              C1CCOC1
1,4-dioxane                  C1COCCO1
methyl tert-butyl ether      COC(C)(C)C
1,2-dimethoxyethane          COCCOC
ethyl acetate                CCOC(C)=O
butyl acetate                CCCCOC(C)=O
acetonitrile                 CC#N
N,N-dimethylformamide        CN(C)C=O
N,N-dimethylacetamide        CN(C)C(C)=O
N-methylpyrrolidone          CN1CCCC1=O
dimethyl sulfoxide           CS(C)=O
sulfolane                    O=S1(=O)CCCC1
dichloromethane              ClCCl
chloroform                   ClC(Cl)Cl
carbon tetrachloride         ClC(Cl)(Cl)Cl
1,2-dichloroethane           ClCCCl
trichloroethylene            ClC=C(Cl)Cl
carbon disulfide             S=C=S
hexane                       CCCCCC
heptane                      CCCCCCC
cyclohexane                  C1CCCCC1
methane                      C
propane                      CCC
isobutane                    CC(C)C
ethylene                     C=C
acetylene                    C#C
1,3-butadiene                C=CC=C
isoprene                     CC(=C)C=C
benzene                      c1ccccc1
toluene                      Cc1ccccc1
p-xylene                     Cc1ccc(C)cc1
ethylbenzene                 CCc1ccccc1
cumene                       CC(C)c1ccccc1
styrene                      C=Cc1ccccc1
chlorobenzene                Clc1ccccc1
nitrobenzene                 O=[N+]([O-])c1ccccc1
aniline                      Nc1ccccc1
phenol                       Oc1ccccc1
anisole                      COc1ccccc1
benzaldehyde                 O=Cc1ccccc1
benzonitrile                 N#Cc1ccccc1
acetophenone                 CC(=O)c1ccccc1
benzophenone                 O=C(c1ccccc1)c1ccccc1
benzyl alcohol               OCc1ccccc1
benzoic acid                 O=C(O)c1ccccc1
benzoyl peroxide             O=C(OOC(=O)c1ccccc1)c1ccccc1
phenylacetylene              C#Cc1ccccc1
naphthalene                  c1ccc2ccccc2c1
anthracene                   c1ccc2cc3ccccc3cc2c1
biphenyl                     c1ccc(-c2ccccc2)cc1
pyridine                     c1ccncc1
pyrimidine                   c1cncnc1
pyrrole                      c1cc[nH]c1
furan                        c1ccoc1
thiophene                    c1ccsc1
imidazole                    c1c[nH]cn1
pyrazole                     c1cn[nH]c1
thiazole                     c1cscn1
indole                       c1ccc2[nH]ccc2c1
quinoline                    c1ccc2ncccc2c1
piperidine                   C1CCNCC1
morpholine                   C1COCCN1
piperazine                   C1CNCCN1
pyrrolidine                  C1CCNC1
triethylamine                CCN(CC)CC
diisopropylethylamine        CCN(C(C)C)C(C)C
ethylenediamine              NCCN
ethanolamine                 NCCO
formaldehyde                 C=O
acetaldehyde                 CC=O
acrolein                     C=CC=O
formic acid                  O=CO
acetic acid                  CC(=O)O
trifluoroacetic acid         O=C(O)C(F)(F)F
acetic anhydride             CC(=O)OC(C)=O
acetyl chloride              CC(=O)Cl
acrylic acid                 C=CC(=O)O
methyl methacrylate          COC(=O)C(=C)C
acrylonitrile                C=CC#N
vinyl acetate                C=COC(C)=O
ethylene oxide               C1CO1
urea                         NC(N)=O
thiourea                     NC(N)=S
guanidine                    N=C(N)N
nitromethane                 C[N+](=O)[O-]
methanesulfonic acid         CS(=O)(=O)O
p-toluenesulfonic acid       Cc1ccc(S(=O)(=O)O)cc1
phenyl isocyanate            O=C=Nc1ccccc1
phenylboronic acid           OB(O)c1ccccc1
phenylhydrazine              NNc1ccccc1
ammonia                      N
hydrogen cyanide             C#N
hydrogen peroxide            OO
carbon dioxide               O=C=O
phosgene                     O=C(Cl)Cl
# salts and ions
sodium chloride              [Na+].[Cl-]
sodium acetate               CC(=O)[O-].[Na+]
ammonium chloride            [NH4+].[Cl-]
tetrabutylammonium bromide   CCCC[N+](CCCC)(CCCC)CCCC.[Br-]
choline                      C[N+](C)(C)CCO
acetylcholine                CC(=O)OCC[N+](C)(C)C
betaine                      C[N+](C)(C)CC(=O)[O-]
sodium benzoate              O=C([O-])c1ccccc1.[Na+]
sodium dodecyl sulfate       CCCCCCCCCCCCOS(=O)(=O)[O-].[Na+]
monosodium glutamate         N[C@@H](CCC(=O)[O-])C(=O)O.[Na+]
# amino acids and relatives
glycine                      NCC(=O)O
L-alanine                    C[C@H](N)C(=O)O
L-valine                     CC(C)[C@H](N)C(=O)O
L-leucine                    CC(C)C[C@H](N)C(=O)O
L-isoleucine                 CC[C@H](C)[C@H](N)C(=O)O
L-proline                    O=C(O)[C@@H]1CCCN1
L-phenylalanine              N[C@@H](Cc1ccccc1)C(=O)O
L-tyrosine                   N[C@@H](Cc1ccc(O)cc1)C(=O)O
L-tryptophan                 N[C@@H](Cc1c[nH]c2ccccc12)C(=O)O
L-serine                     N[C@@H](CO)C(=O)O
L-threonine                  C[C@@H](O)[C@H](N)C(=O)O
L-cysteine                   N[C@@H](CS)C(=O)O
L-methionine                 CSCC[C@H](N)C(=O)O
L-asparagine                 NC(=O)C[C@H](N)C(=O)O
L-glutamine                  NC(=O)CC[C@H](N)C(=O)O
L-aspartic acid              N[C@@H](CC(=O)O)C(=O)O
L-glutamic acid              N[C@@H](CCC(=O)O)C(=O)O
L-lysine                     NCCCC[C@H](N)C(=O)O
L-arginine                   N=C(N)NCCC[C@H](N)C(=O)O
L-histidine                  N[C@@H](Cc1c[nH]cn1)C(=O)O
cystine                      N[C@@H](CSSC[C@H](N)C(=O)O)C(=O)O
beta-alanine                 NCCC(=O)O
gamma-aminobutyric acid      NCCCC(=O)O
taurine                      NCCS(=O)(=O)O
creatine                     CN(CC(=O)O)C(=N)N
ornithine                    NCCC[C@H](N)C(=O)O
citrulline                   NC(=O)NCCC[C@H](N)C(=O)O
glutathione                  N[C@@H](CCC(=O)N[C@@H](CS)C(=O)NCC(=O)O)C(=O)O
aspartame                    COC(=O)[C@H](Cc1ccccc1)NC(=O)[C@@H](N)CC(=O)O
levodopa                     N[C@@H](Cc1ccc(O)c(O)c1)C(=O)O
carnitine                    C[N+](C)(C)C[C@H](O)CC(=O)[O-]
# metabolites and acids
lactic acid                  CC(O)C(=O)O
pyruvic acid                 CC(=O)C(=O)O
oxalic acid                  O=C(O)C(=O)O
malonic acid                 O=C(O)CC(=O)O
succinic acid                O=C(O)CCC(=O)O
fumaric acid                 O=C(O)/C=C/C(=O)O
maleic acid                  O=C(O)/C=C\\C(=O)O
malic acid                   O=C(O)CC(O)C(=O)O
tartaric acid                O=C(O)[C@H](O)[C@@H](O)C(=O)O
citric acid                  O=C(O)CC(O)(CC(=O)O)C(=O)O
alpha-ketoglutaric acid      O=C(O)CCC(=O)C(=O)O
oxaloacetic acid             O=C(O)CC(=O)C(=O)O
mandelic acid                O=C(O)C(O)c1ccccc1
gallic acid                  O=C(O)c1cc(O)c(O)c(O)c1
caffeic acid                 O=C(O)/C=C/c1ccc(O)c(O)c1
ferulic acid                 COc1cc(/C=C/C(=O)O)ccc1O
cinnamic acid                O=C(O)/C=C/c1ccccc1
salicylic acid               O=C(O)c1ccccc1O
palmitic acid                CCCCCCCCCCCCCCCC(=O)O
stearic acid                 CCCCCCCCCCCCCCCCCC(=O)O
oleic acid                   CCCCCCCC/C=C\\CCCCCCCC(=O)O
linoleic acid                CCCCC/C=C\\C/C=C\\CCCCCCCC(=O)O
arachidonic acid             CCCCC/C=C\\C/C=C\\C/C=C\\C/C=C\\CCCC(=O)O
cholesterol                  CC(C)CCC[C@@H](C)[C@H]1CC[C@H]2[C@@H]3CC=C4C[C@@H](O)CC[C@]4(C)[C@H]3CC[C@]12C
testosterone                 C[C@]12CC[C@H]3[C@@H](CCC4=CC(=O)CC[C@@]43C)[C@@H]1CC[C@@H]2O
estradiol                    C[C@]12CC[C@@H]3c4ccc(O)cc4CC[C@H]3[C@@H]1CC[C@@H]2O
progesterone                 CC(=O)[C@H]1CC[C@H]2[C@@H]3CCC4=CC(=O)CC[C@]4(C)[C@H]3CC[C@]12C
dopamine                     NCCc1ccc(O)c(O)c1
noradrenaline                NC[C@H](O)c1ccc(O)c(O)c1
adrenaline                   CNC[C@H](O)c1ccc(O)c(O)c1
serotonin                    NCCc1c[nH]c2ccc(O)cc12
melatonin                    COc1ccc2[nH]cc(CCNC(C)=O)c2c1
histamine                    NCCc1c[nH]cn1
tryptamine                   NCCc1c[nH]c2ccccc12
phenethylamine               NCCc1ccccc1
putrescine                   NCCCCN
spermidine                   NCCCCNCCCN
dihydroxyacetone phosphate   O=C(CO)COP(=O)(O)O
phosphoenolpyruvic acid      C=C(OP(=O)(O)O)C(=O)O
adenine                      Nc1ncnc2[nH]cnc12
guanine                      Nc1nc2[nH]cnc2c(=O)[nH]1
cytosine                     Nc1cc[nH]c(=O)n1
thymine                      Cc1c[nH]c(=O)[nH]c1=O
uracil                       O=c1cc[nH]c(=O)[nH]1
adenosine                    Nc1ncnc2c1ncn2[C@@H]1O[C@H](CO)[C@@H](O)[C@H]1O
uric acid                    O=c1[nH]c(=O)c2[nH]c(=O)[nH]c2[nH]1
hypoxanthine                 O=c1[nH]cnc2[nH]cnc12
# sugars and polyols
D-glucose                    OC[C@H]1OC(O)[C@H](O)[C@@H](O)[C@@H]1O
D-fructose                   OCC(=O)[C@@H](O)[C@H](O)[C@H](O)CO
D-galactose                  OC[C@H]1OC(O)[C@H](O)[C@@H](O)[C@H]1O
D-ribose                     OC[C@H]1OC(O)[C@H](O)[C@@H]1O
D-mannitol                   OC[C@@H](O)[C@@H](O)[C@H](O)[C@H](O)CO
D-glucosamine                N[C@H]1C(O)O[C@H](CO)[C@@H](O)[C@@H]1O
sucrose                      OC[C@H]1O[C@H](O[C@]2(CO)O[C@H](CO)[C@@H](O)[C@@H]2O)[C@H](O)[C@@H](O)[C@@H]1O
lactose                      OC[C@H]1O[C@@H](O[C@H]2[C@H](O)[C@@H](O)C(O)O[C@@H]2CO)[C@H](O)[C@@H](O)[C@H]1O
myo-inositol                 OC1C(O)C(O)C(O)C(O)C1O
xylitol                      OCC(O)C(O)C(O)CO
erythritol                   OCC(O)C(O)CO
methyl glucoside             COC1OC(CO)C(O)C(O)C1O
# vitamins and cofactors
ascorbic acid                OC[C@H](O)[C@H]1OC(=O)C(O)=C1O
niacin                       O=C(O)c1cccnc1
niacinamide                  NC(=O)c1cccnc1
pyridoxine                   Cc1ncc(CO)c(CO)c1O
pyridoxal phosphate          Cc1ncc(COP(=O)(O)O)c(C=O)c1O
pantothenic acid             CC(C)(CO)[C@@H](O)C(=O)NCCC(=O)O
biotin                       O=C(O)CCCC[C@@H]1SC[C@@H]2NC(=O)N[C@H]12
retinol                      CC1=C(/C=C/C(C)=C/C=C/C(C)=C/CO)C(C)(C)CCC1
thiamine                     Cc1ncc(C[n+]2csc(CCO)c2C)c(N)n1
lipoic acid                  O=C(O)CCCC[C@@H]1CCSS1
menadione                    CC1=CC(=O)c2ccccc2C1=O
# terpenes, flavours and natural products
limonene                     CC1=CCC(C(C)=C)CC1
menthol                      CC(C)[C@@H]1CC[C@@H](C)C[C@H]1O
camphor                      CC1(C)C2CCC1(C)C(=O)C2
alpha-pinene                 CC1=CCC2CC1C2(C)C
geraniol                     CC(C)=CCC/C(C)=C/CO
linalool                     C=CC(C)(O)CCC=C(C)C
citral                       CC(C)=CCC/C(C)=C/C=O
carvone                      C=C(C)C1CC=C(C)C(=O)C1
thymol                       Cc1ccc(C(C)C)c(O)c1
eugenol                      C=CCc1ccc(O)c(OC)c1
vanillin                     COc1cc(C=O)ccc1O
cinnamaldehyde               O=C/C=C/c1ccccc1
anethole                     COc1ccc(/C=C/C)cc1
safrole                      C=CCc1ccc2c(c1)OCO2
coumarin                     O=c1ccc2ccccc2o1
methyl salicylate            COC(=O)c1ccccc1O
isoamyl acetate              CC(=O)OCCC(C)C
ethyl butyrate               CCCC(=O)OCC
diacetyl                     CC(=O)C(C)=O
maltol                       Cc1occc(=O)c1O
furfural                     O=Cc1ccco1
allicin                      C=CCSS(=O)CC=C
allyl isothiocyanate         C=CCN=C=S
capsaicin                    COc1cc(CNC(=O)CCCC/C=C/C(C)C)ccc1O
piperine                     O=C(/C=C/C=C/c1ccc2c(c1)OCO2)N1CCCCC1
caffeine                     Cn1c(=O)c2c(ncn2C)n(C)c1=O
theobromine                  Cn1cnc2c1c(=O)[nH]c(=O)n2C
theophylline                 Cn1c(=O)c2[nH]cnc2n(C)c1=O
nicotine                     CN1CCC[C@H]1c1cccnc1
cocaine                      COC(=O)[C@H]1[C@@H](OC(=O)c2ccccc2)C[C@@H]2CC[C@H]1N2C
morphine                     CN1CC[C@]23c4c5ccc(O)c4O[C@H]2[C@@H](O)C=C[C@H]3[C@H]1C5
codeine                      COc1ccc2c3c1O[C@H]1[C@@H](O)C=C[C@H]4[C@@H](C2)N(C)CC[C@]314
quinine                      C=C[C@H]1CN2CC[C@H]1C[C@H]2[C@H](O)c1ccnc2ccc(OC)cc12
atropine                     CN1[C@H]2CC[C@@H]1CC(OC(=O)C(CO)c1ccccc1)C2
mescaline                    COc1cc(CCN)cc(OC)c1OC
muscimol                     NCc1cc(=O)[nH]o1
resveratrol                  Oc1ccc(/C=C/c2cc(O)cc(O)c2)cc1
curcumin                     COc1cc(/C=C/C(=O)CC(=O)/C=C/c2ccc(O)c(OC)c2)ccc1O
quercetin                    O=c1c(O)c(-c2ccc(O)c(O)c2)oc2cc(O)cc(O)c12
catechin                     Oc1cc(O)c2c(c1)O[C@H](c1ccc(O)c(O)c1)[C@@H](O)C2
genistein                    O=c1c(-c2ccc(O)cc2)coc2cc(O)cc(O)c12
emodin                       Cc1cc(O)c2c(c1)C(=O)c1cc(O)cc(O)c1C2=O
juglone                      O=C1C=CC(=O)c2c(O)cccc21
colchicine                   COc1cc2c(c(OC)c1OC)-c1ccc(OC)c(=O)cc1[C@@H](NC(C)=O)CC2
# drugs
aspirin                      CC(=O)Oc1ccccc1C(=O)O
paracetamol                  CC(=O)Nc1ccc(O)cc1
ibuprofen                    CC(C)Cc1ccc(C(C)C(=O)O)cc1
naproxen                     COc1ccc2cc([C@H](C)C(=O)O)ccc2c1
ketoprofen                   CC(C(=O)O)c1cccc(C(=O)c2ccccc2)c1
diclofenac                   O=C(O)Cc1ccccc1Nc1c(Cl)cccc1Cl
indomethacin                 COc1ccc2c(c1)c(CC(=O)O)c(C)n2C(=O)c1ccc(Cl)cc1
celecoxib                    Cc1ccc(-c2cc(C(F)(F)F)nn2-c2ccc(S(N)(=O)=O)cc2)cc1
phenacetin                   CCOc1ccc(NC(C)=O)cc1
lidocaine                    CCN(CC)CC(=O)Nc1c(C)cccc1C
procaine                     CCN(CC)CCOC(=O)c1ccc(N)cc1
benzocaine                   CCOC(=O)c1ccc(N)cc1
procainamide                 CCN(CC)CCNC(=O)c1ccc(N)cc1
propranolol                  CC(C)NCC(O)COc1cccc2ccccc12
atenolol                     CC(C)NCC(O)COc1ccc(CC(N)=O)cc1
metoprolol                   COCCc1ccc(OCC(O)CNC(C)C)cc1
salbutamol                   CC(C)(C)NCC(O)c1ccc(O)c(CO)c1
ephedrine                    CN[C@@H](C)[C@H](O)c1ccccc1
amphetamine                  CC(N)Cc1ccccc1
fluoxetine                   CNCCC(Oc1ccc(C(F)(F)F)cc1)c1ccccc1
sertraline                   CN[C@H]1CC[C@@H](c2ccc(Cl)c(Cl)c2)c2ccccc21
citalopram                   CN(C)CCCC1(c2ccc(F)cc2)OCc2cc(C#N)ccc21
venlafaxine                  COc1ccc(C(CN(C)C)C2(O)CCCCC2)cc1
bupropion                    CC(NC(C)(C)C)C(=O)c1cccc(Cl)c1
amitriptyline                CN(C)CCC=C1c2ccccc2CCc2ccccc21
imipramine                   CN(C)CCCN1c2ccccc2CCc2ccccc21
chlorpromazine               CN(C)CCCN1c2ccccc2Sc2ccc(Cl)cc21
haloperidol                  O=C(CCCN1CCC(O)(c2ccc(Cl)cc2)CC1)c1ccc(F)cc1
diazepam                     CN1C(=O)CN=C(c2ccccc2)c2cc(Cl)ccc21
phenobarbital                CCC1(c2ccccc2)C(=O)NC(=O)NC1=O
phenytoin                    O=C1NC(=O)C(c2ccccc2)(c2ccccc2)N1
carbamazepine                NC(=O)N1c2ccccc2C=Cc2ccccc21
valproic acid                CCCC(CCC)C(=O)O
gabapentin                   NCC1(CC(=O)O)CCCCC1
pregabalin                   CC(C)C[C@H](CN)CC(=O)O
ketamine                     CNC1(c2ccccc2Cl)CCCCC1=O
pethidine                    CCOC(=O)C1(c2ccccc2)CCN(C)CC1
fentanyl                     CCC(=O)N(c1ccccc1)C1CCN(CCc2ccccc2)CC1
methadone                    CCC(=O)C(CC(C)N(C)C)(c1ccccc1)c1ccccc1
tramadol                     COc1cccc(C2(O)CCCCC2CN(C)C)c1
diphenhydramine              CN(C)CCOC(c1ccccc1)c1ccccc1
cetirizine                   O=C(O)COCCN1CCN(C(c2ccccc2)c2ccc(Cl)cc2)CC1
loratadine                   CCOC(=O)N1CCC(=C2c3ccc(Cl)cc3CCc3cccnc32)CC1
ranitidine                   CNC(=C[N+](=O)[O-])NCCSCc1ccc(CN(C)C)o1
cimetidine                   CN=C(NC#N)NCCSCc1nc[nH]c1C
omeprazole                   COc1ccc2[nH]c(S(=O)Cc3ncc(C)c(OC)c3C)nc2c1
metformin                    CN(C)C(=N)NC(=N)N
tolbutamide                  CCCCNC(=O)NS(=O)(=O)c1ccc(C)cc1
captopril                    C[C@H](CS)C(=O)N1CCC[C@H]1C(=O)O
enalapril                    CCOC(=O)[C@H](CCc1ccccc1)N[C@@H](C)C(=O)N1CCC[C@H]1C(=O)O
nifedipine                   COC(=O)C1=C(C)NC(C)=C(C(=O)OC)C1c1ccccc1[N+](=O)[O-]
hydrochlorothiazide          NS(=O)(=O)c1cc2c(cc1Cl)NCNS2(=O)=O
furosemide                   NS(=O)(=O)c1cc(C(=O)O)c(NCc2ccco2)cc1Cl
warfarin                     CC(=O)CC(c1ccccc1)c1c(O)c2ccccc2oc1=O
clopidogrel                  COC(=O)[C@H](c1ccccc1Cl)N1CCc2sccc2C1
fenofibrate                  CC(C)OC(=O)C(C)(C)Oc1ccc(C(=O)c2ccc(Cl)cc2)cc1
lovastatin                   CC[C@H](C)C(=O)O[C@H]1C[C@@H](C)C=C2C=C[C@H](C)[C@H](CC[C@@H]3C[C@@H](O)CC(=O)O3)[C@@H]12
sildenafil                   CCCc1nn(C)c2c1nc(-c1cc(S(=O)(=O)N3CCN(C)CC3)ccc1OCC)[nH]c2=O
penicillin G                 CC1(C)S[C@@H]2[C@H](NC(=O)Cc3ccccc3)C(=O)N2[C@H]1C(=O)O
amoxicillin                  CC1(C)S[C@@H]2[C@H](NC(=O)[C@H](N)c3ccc(O)cc3)C(=O)N2[C@H]1C(=O)O
ciprofloxacin                O=C(O)c1cn(C2CC2)c2cc(N3CCNCC3)c(F)cc2c1=O
sulfamethoxazole             Cc1cc(NS(=O)(=O)c2ccc(N)cc2)no1
sulfanilamide                Nc1ccc(S(N)(=O)=O)cc1
trimethoprim                 COc1cc(Cc2cnc(N)nc2N)cc(OC)c1OC
metronidazole                Cc1ncc([N+](=O)[O-])n1CCO
isoniazid                    NNC(=O)c1ccncc1
pyrazinamide                 NC(=O)c1cnccn1
chloramphenicol              O=C(N[C@H](CO)[C@H](O)c1ccc([N+](=O)[O-])cc1)C(Cl)Cl
linezolid                    CC(=O)NC[C@H]1CN(c2ccc(N3CCOCC3)c(F)c2)C(=O)O1
nitrofurantoin               O=C1CN(N=Cc2ccc([N+](=O)[O-])o2)C(=O)N1
fluconazole                  OC(Cn1cncn1)(Cn1cncn1)c1ccc(F)cc1F
chloroquine                  CCN(CC)CCCC(C)Nc1ccnc2cc(Cl)ccc12
aciclovir                    Nc1nc2c(ncn2COCCO)c(=O)[nH]1
zidovudine                   Cc1cn([C@H]2C[C@H](N=[N+]=[N-])[C@@H](CO)O2)c(=O)[nH]c1=O
oseltamivir                  CCOC(=O)C1=C[C@@H](OC(CC)CC)[C@H](NC(C)=O)[C@@H](N)C1
amantadine                   NC12CC3CC(CC(C3)C1)C2
fluorouracil                 O=c1[nH]cc(F)c(=O)[nH]1
cyclophosphamide             O=P1(N(CCCl)CCCl)NCCCO1
chlorambucil                 O=C(O)CCCc1ccc(N(CCCl)CCCl)cc1
hydroxyurea                  NC(=O)NO
temozolomide                 Cn1nnc2c(C(N)=O)ncn2c1=O
imatinib                     Cc1ccc(NC(=O)c2ccc(CN3CCN(C)CC3)cc2)cc1Nc1nccc(-c2cccnc2)n1
gefitinib                    COc1cc2ncnc(Nc3ccc(F)c(Cl)c3)c2cc1OCCCN1CCOCC1
tamoxifen                    CCC(=C(c1ccccc1)c1ccc(OCCN(C)C)cc1)c1ccccc1
methotrexate                 CN(Cc1cnc2nc(N)nc(N)c2n1)c1ccc(C(=O)N[C@@H](CCC(=O)O)C(=O)O)cc1
thalidomide                  O=C1CCC(N2C(=O)c3ccccc3C2=O)C(=O)N1
allopurinol                  O=c1[nH]cnc2[nH]ncc12
disulfiram                   CCN(CC)C(=S)SSC(=S)N(CC)CC
levetiracetam                CC[C@@H](C(N)=O)N1CCCC1=O
modafinil                    NC(=O)CS(=O)C(c1ccccc1)c1ccccc1
donepezil                    COc1cc2c(cc1OC)C(=O)C(CC1CCN(Cc3ccccc3)CC1)C2
memantine                    CC12CC3CC(C)(C1)CC(N)(C3)C2
tacrine                      Nc1c2c(nc3ccccc13)CCCC2
acetazolamide                CC(=O)Nc1nnc(S(N)(=O)=O)s1
nitroglycerin                O=[N+]([O-])OCC(CO[N+](=O)[O-])O[N+](=O)[O-]
isosorbide                   OC1COC2C(O)COC12
dapsone                      Nc1ccc(S(=O)(=O)c2ccc(N)cc2)cc1
busulfan                     CS(=O)(=O)OCCCCOS(C)(=O)=O
penicillamine                CC(C)(S)[C@@H](N)C(=O)O
acetylcysteine               CC(=O)N[C@@H](CS)C(=O)O
propofol                     CC(C)c1cccc(C(C)C)c1O
halothane                    FC(F)(F)C(Cl)Br
sevoflurane                  FCOC(C(F)(F)F)C(F)(F)F
# dyes, agrochemicals, explosives, polymers' monomers
indigo                       O=C1C(=C2Nc3ccccc3C2=O)Nc2ccccc21
alizarin                     O=C1c2ccccc2C(=O)c2c1ccc(O)c2O
methyl orange                CN(C)c1ccc(N=Nc2ccc(S(=O)(=O)[O-])cc2)cc1.[Na+]
azobenzene                   c1ccc(N=Nc2ccccc2)cc1
fluorescein                  O=C1OC2(c3ccc(O)cc3Oc3cc(O)ccc32)c2ccccc21
phenolphthalein              O=C1OC(c2ccc(O)cc2)(c2ccc(O)cc2)c2ccccc21
methylene blue               CN(C)c1ccc2nc3ccc(N(C)C)cc3[s+]c2c1.[Cl-]
anthraquinone                O=C1c2ccccc2C(=O)c2ccccc21
acridine orange              CN(C)c1ccc2cc3ccc(N(C)C)cc3nc2c1
sudan I                      Oc1ccc2ccccc2c1N=Nc1ccccc1
saccharin                    O=C1NS(=O)(=O)c2ccccc21
DDT                          Clc1ccc(C(c2ccc(Cl)cc2)C(Cl)(Cl)Cl)cc1
2,4-D                        O=C(O)COc1ccc(Cl)cc1Cl
glyphosate                   O=C(O)CNCP(=O)(O)O
atrazine                     CCNc1nc(Cl)nc(NC(C)C)n1
carbaryl                     CNC(=O)Oc1cccc2ccccc12
parathion                    CCOP(=S)(OCC)Oc1ccc([N+](=O)[O-])cc1
malathion                    CCOC(=O)CC(SP(=S)(OC)OC)C(=O)OCC
diuron                       CN(C)C(=O)Nc1ccc(Cl)c(Cl)c1
imidacloprid                 O=[N+]([O-])N=C1NCCN1Cc1ccc(Cl)nc1
DEET                         CCN(CC)C(=O)c1cccc(C)c1
2,4,6-trinitrotoluene        Cc1c([N+](=O)[O-])cc([N+](=O)[O-])cc1[N+](=O)[O-]
picric acid                  O=[N+]([O-])c1cc([N+](=O)[O-])c(O)c([N+](=O)[O-])c1
bisphenol A                  CC(C)(c1ccc(O)cc1)c1ccc(O)cc1
terephthalic acid            O=C(O)c1ccc(C(=O)O)cc1
caprolactam                  O=C1CCCCCN1
hydroquinone                 Oc1ccc(O)cc1
catechol                     Oc1ccccc1O
1,4-benzoquinone             O=C1C=CC(=O)C=C1
butylated hydroxytoluene     Cc1cc(C(C)(C)C)c(O)c(C(C)(C)C)c1
methylparaben                COC(=O)c1ccc(O)cc1
dimethyl phthalate           COC(=O)c1ccccc1C(=O)OC
triphenylphosphine           c1ccc(P(c2ccccc2)c2ccccc2)cc1
triphenylphosphine oxide     O=P(c1ccccc1)(c1ccccc1)c1ccccc1
triethyl phosphate           CCOP(=O)(OCC)OCC
tetramethylsilane            C[Si](C)(C)C
ferrocene                    [Fe+2].c1cc[cH-]c1.c1cc[cH-]c1
"""


def known_molecules() -> dict[str, str]:
    """Common name → SMILES, in the order of the table."""
    lines = [line for line in _TABLE.strip().splitlines() if not line.startswith("#")]
    return {name.strip(): smiles for name, smiles in (line.rsplit(maxsplit=1) for line in lines)}
