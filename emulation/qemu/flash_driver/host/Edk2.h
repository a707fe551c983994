/** @file
  As much of EDK2's interfaces as the flash driver uses, for a 64-bit host with its own C library.

  It stands in for every header the driver includes. Names and layouts are EDK2's and the PI
  specification's; lengths of the flash come from the compiler's command line.

  SPDX-License-Identifier: MIT
**/

#ifndef HOST_EDK2_H_
#define HOST_EDK2_H_

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

// MdePkg/Include/Base.h

#define IN
#define OUT
#define OPTIONAL
#define CONST   const
#define EFIAPI
#define STATIC  static
#define TRUE    1
#define FALSE   0

typedef void           VOID;
typedef uint8_t        UINT8;
typedef uint8_t        BOOLEAN;
typedef char           CHAR8;
typedef uint16_t       UINT16;
typedef uint32_t       UINT32;
typedef uint64_t       UINT64;
typedef uint64_t       UINTN;
typedef UINT64         EFI_STATUS;
typedef UINT64         EFI_LBA;
typedef UINT64         EFI_PHYSICAL_ADDRESS;
typedef VOID           *EFI_HANDLE;

typedef struct {
  UINT32    Data1;
  UINT16    Data2;
  UINT16    Data3;
  UINT8     Data4[8];
} EFI_GUID;

#define VA_LIST              va_list
#define VA_START(List, Arg)  va_start (List, Arg)
#define VA_ARG(List, Type)   va_arg (List, Type)
#define VA_END(List)         va_end (List)

#define OFFSET_OF(Type, Field)  offsetof (Type, Field)
#define STATIC_ASSERT           _Static_assert
#define SIZE_4KB                0x1000

#define ENCODE_ERROR(Code)       (0x8000000000000000ULL | (Code))
#define EFI_ERROR(Status)        (((Status) >> 63) != 0)
#define EFI_SUCCESS              0
#define EFI_INVALID_PARAMETER    ENCODE_ERROR (2)
#define EFI_UNSUPPORTED          ENCODE_ERROR (3)
#define EFI_BAD_BUFFER_SIZE      ENCODE_ERROR (4)
#define EFI_OUT_OF_RESOURCES     ENCODE_ERROR (9)
#define EFI_NOT_FOUND            ENCODE_ERROR (14)
#define EFI_ACCESS_DENIED        ENCODE_ERROR (15)

#define EFI_SIZE_TO_PAGES(Size)  (((Size) + 0xFFF) >> 12)

// MdePkg/Include/Pi/PiFirmwareVolume.h

#define EFI_FVB2_READ_ENABLED_CAP   0x00000002
#define EFI_FVB2_READ_STATUS        0x00000004
#define EFI_FVB2_WRITE_ENABLED_CAP  0x00000010
#define EFI_FVB2_WRITE_STATUS       0x00000020
#define EFI_FVB2_STICKY_WRITE       0x00000200
#define EFI_FVB2_MEMORY_MAPPED      0x00000400
#define EFI_FVB2_ERASE_POLARITY     0x00000800

#define EFI_FVH_SIGNATURE  0x4856465F
#define EFI_FVH_REVISION   2

typedef UINT32 EFI_FVB_ATTRIBUTES_2;

typedef struct {
  UINT32    NumBlocks;
  UINT32    Length;
} EFI_FV_BLOCK_MAP_ENTRY;

typedef struct {
  UINT8                     ZeroVector[16];
  EFI_GUID                  FileSystemGuid;
  UINT64                    FvLength;
  UINT32                    Signature;
  EFI_FVB_ATTRIBUTES_2      Attributes;
  UINT16                    HeaderLength;
  UINT16                    Checksum;
  UINT16                    ExtHeaderOffset;
  UINT8                     Reserved[1];
  UINT8                     Revision;
  EFI_FV_BLOCK_MAP_ENTRY    BlockMap[1];
} EFI_FIRMWARE_VOLUME_HEADER;

// MdePkg/Include/Protocol/FirmwareVolumeBlock.h

#define EFI_LBA_LIST_TERMINATOR  0xFFFFFFFFFFFFFFFFULL

typedef struct EFI_FVB EFI_FIRMWARE_VOLUME_BLOCK_PROTOCOL;
typedef struct EFI_FVB EFI_FIRMWARE_VOLUME_BLOCK2_PROTOCOL;
typedef struct EFI_FVB EFI_SMM_FIRMWARE_VOLUME_BLOCK_PROTOCOL;

struct EFI_FVB {
  EFI_STATUS    (*GetAttributes)(
    CONST struct EFI_FVB  *,
    EFI_FVB_ATTRIBUTES_2 *
    );
  EFI_STATUS    (*SetAttributes)(
    CONST struct EFI_FVB  *,
    EFI_FVB_ATTRIBUTES_2 *
    );
  EFI_STATUS    (*GetPhysicalAddress)(
    CONST struct EFI_FVB  *,
    EFI_PHYSICAL_ADDRESS *
    );
  EFI_STATUS    (*GetBlockSize)(
    CONST struct EFI_FVB  *,
    EFI_LBA,
    UINTN *,
    UINTN *
    );
  EFI_STATUS    (*Read)(
    CONST struct EFI_FVB  *,
    EFI_LBA,
    UINTN,
    UINTN *,
    UINT8 *
    );
  EFI_STATUS    (*Write)(
    CONST struct EFI_FVB  *,
    EFI_LBA,
    UINTN,
    UINTN *,
    UINT8 *
    );
  EFI_STATUS    (*EraseBlocks)(
    CONST struct EFI_FVB  *,
    ...
    );
  EFI_HANDLE    ParentHandle;
};

extern EFI_GUID  gEfiSmmFirmwareVolumeBlockProtocolGuid;

// MdeModulePkg/Include/Guid

#define VARIABLE_STORE_FORMATTED  0x5A
#define VARIABLE_STORE_HEALTHY    0xFE

#pragma pack(1)
typedef struct {
  EFI_GUID    Signature;
  UINT32      Size;
  UINT8       Format;
  UINT8       State;
  UINT16      Reserved;
  UINT32      Reserved1;
} VARIABLE_STORE_HEADER;
#pragma pack()

extern EFI_GUID  gEfiAuthenticatedVariableGuid;
extern EFI_GUID  gEfiSystemNvDataFvGuid;

// MdePkg/Include/Pi/PiMmCis.h, its members that are used here

typedef enum {
  EFI_NATIVE_INTERFACE
} EFI_INTERFACE_TYPE;

typedef struct {
  EFI_STATUS    (*MmInstallProtocolInterface)(
    EFI_HANDLE *,
    EFI_GUID *,
    EFI_INTERFACE_TYPE,
    VOID *
    );
  EFI_STATUS    (*MmLocateProtocol)(
    EFI_GUID *,
    VOID *,
    VOID **
    );
} EFI_MM_SYSTEM_TABLE;

extern EFI_MM_SYSTEM_TABLE  *gMmst;

// Libraries

#define DEBUG(Expression)
#define FixedPcdGet32(Name)  (Name)

VOID *
CopyMem (
  VOID        *Destination,
  CONST VOID  *Source,
  UINTN       Length
  );

VOID *
SetMem (
  VOID   *Buffer,
  UINTN  Length,
  UINT8  Value
  );

VOID *
ZeroMem (
  VOID   *Buffer,
  UINTN  Length
  );

int64_t
CompareMem (
  CONST VOID  *Destination,
  CONST VOID  *Source,
  UINTN       Length
  );

EFI_GUID *
CopyGuid (
  EFI_GUID        *Destination,
  CONST EFI_GUID  *Source
  );

UINT16
CalculateCheckSum16 (
  CONST UINT16  *Buffer,
  UINTN         Length
  );

VOID *
AllocateRuntimePages (
  UINTN  Pages
  );

// ArmPkg/Include/Library/ArmFfaLib.h

typedef struct {
  UINTN    Arg0;
  UINTN    Arg1;
  UINTN    Arg2;
  UINTN    Arg3;
  UINTN    Arg4;
} DIRECT_MSG_ARGS;

EFI_STATUS
ArmFfaLibMsgSendDirectReq (
  UINT16           DestPartId,
  UINT32           Flags,
  DIRECT_MSG_ARGS  *ImpDefArgs
  );

EFI_STATUS
FfaStatusToEfiStatus (
  UINTN  FfaStatus
  );

#endif // HOST_EDK2_H_
